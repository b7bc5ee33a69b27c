import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { svelte, vitePreprocess } from "@sveltejs/vite-plugin-svelte";
import { defineConfig, type Rolldown } from "vite";

/** sha256 of the sources: tests/unit/test_page_tables.py holds the built page to it, without node. */
function sources(): string {
  const hash = createHash("sha256");
  const entries = readdirSync("src", { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile()).map(({ parentPath, name }) => `${parentPath}/${name}`);
  for (const file of files.filter((name) => !name.endsWith(".test.ts")).sort())
    hash.update(`${file}\0`).update(readFileSync(file));
  return hash.digest("hex");
}

const parts = readdirSync("src/parts").sort();

/** Of a part's styles: short, as it stands in the built files hundreds of times. */
const cssHash = ({ filename }: { filename: string }): string =>
  `s${(1 + parts.indexOf(filename.split("/").at(-1) ?? "")).toString(36)}`;

/** What Svelte and Lightning CSS write at length, and nobody reads here. */
function shorten(file: Rolldown.OutputAsset | Rolldown.OutputChunk): void {
  if (file.type === "chunk") file.code = file.code.replaceAll("https://svelte.dev/e/", "");
  else if (typeof file.source === "string") file.source = file.source.replaceAll("--lightningcss-", "--");
}

const noted = { tag: "meta", attrs: { name: "sources", content: sources() }, injectTo: "head" } as const;

export default defineConfig({
  // Relative addresses: the endpoint may stand behind a proxy under a path of its own.
  base: "./",
  plugins: [
    svelte({ preprocess: vitePreprocess(), compilerOptions: { cssHash, runes: true, discloseVersion: false } }),
    { name: "sources", transformIndexHtml: () => [noted] },
    { name: "shorter", generateBundle: (_, files) => Object.values(files).forEach(shorten) },
  ],
  build: {
    outDir: "../medv_ray/serving/page",
    emptyOutDir: true,
    // The page's content security policy allows no data: addresses but for pictures.
    assetsInlineLimit: 0,
    modulePreload: false,
  },
  // `npm run dev` speaks to an endpoint that is already running.
  server: { proxy: { "/v1": "http://127.0.0.1:8000" } },
});
