import { svelte, vitePreprocess } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

export default defineConfig({
  // Relative addresses: the endpoint may stand behind a proxy under a path of its own.
  base: "./",
  plugins: [svelte({ preprocess: vitePreprocess() })],
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
