// A dialogue as a file that holds everything it needs. Pure but for `save`.

import type { Sampler } from "./api";
import { percent } from "./denoise";
import { sentence } from "./warnings";

export const NOTICE = "Research use only. Not a medical device. Confidence is not calibrated.";

export interface Said {
  preset: string;
  text: string;
  status: string;
  confidence: number | null;
  forward_passes: number | null;
  seed: number | null;
  seconds: number;
  warnings: readonly string[];
}

export interface Exported {
  notice: string;
  exported_at: string;
  endpoint: string;
  model: string;
  medv_ray: string;
  /** Without its name, which may be a patient's. */
  picture: { type: string; bytes: number; sha256: string | null; data: string | null };
  turns: { question: string; asked_at: string; about: string; settings: Partial<Sampler>; answers: Said[] }[];
}

export const asJson = (dialogue: Exported): string => JSON.stringify(dialogue, null, 2) + "\n";

export function asMarkdown(dialogue: Exported): string {
  const { picture } = dialogue;
  const lines = ["# Dialogue about a picture", "", `> **${NOTICE}**`, "", ...facts(dialogue).map((fact) => `- ${fact}`), ""];
  if (picture.data) lines.push("![The picture][picture]", "");
  for (const [i, turn] of dialogue.turns.entries()) {
    lines.push(`## ${i + 1}. Question`, "", quoted(turn.question), "");
    if (turn.about) lines.push(`About: ${turn.about}`, "");
    for (const answer of turn.answers) {
      lines.push(`**Answer** (${answer.preset})`, "", quoted(answer.text || "(no answer)"), "", details(answer), "");
      lines.push(...answer.warnings.map((word) => `- ${sentence(word)}`), "");
    }
  }
  if (picture.data) lines.push(`[picture]: ${picture.data}`, "");
  return lines.join("\n").replace(/\n{3,}/g, "\n\n");
}

export function asHtml(dialogue: Exported): string {
  const turns = dialogue.turns.map(
    (turn, i) => `<section><h2>${i + 1}. ${escaped(turn.question)}</h2>
${turn.about ? `<p class="quiet">About: ${escaped(turn.about)}</p>` : ""}
${turn.answers
  .map(
    (answer) => `<blockquote>${escaped(answer.text || "(no answer)")}</blockquote>
<p class="quiet">${escaped(answer.preset)}: ${escaped(details(answer))}</p>
${answer.warnings.map((word) => `<p class="quiet">${escaped(sentence(word))}</p>`).join("\n")}`,
  )
  .join("\n")}</section>`,
  );
  const { data } = dialogue.picture;
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Dialogue about a picture</title>
<style>
:root { color-scheme: light dark }
body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem; font: 100%/1.5 system-ui, sans-serif }
.notice { padding: .6rem .9rem; border: 2px solid; font-weight: 650 }
.quiet { opacity: .8; font-size: .9rem }
img { max-width: 100%; max-height: 70vh }
blockquote { margin: .5rem 0; padding-left: .9rem; border-left: 3px solid; font-size: 1.15rem; white-space: pre-wrap }
h1, h2 { line-height: 1.25; overflow-wrap: anywhere } h2 { font-size: 1.1rem; white-space: pre-wrap }
li { overflow-wrap: anywhere }
</style></head><body>
<h1>Dialogue about a picture</h1>
<p class="notice">${NOTICE}</p>
<ul>${facts(dialogue).map((fact) => `<li>${escaped(fact)}</li>`).join("")}</ul>
${data ? `<img src="${escaped(data)}" alt="The picture that was asked about">` : ""}
${turns.join("\n")}
</body></html>
`;
}

function facts({ exported_at, endpoint, model, medv_ray, picture }: Exported): string[] {
  const digest = picture.sha256 ? `, sha256 ${picture.sha256}` : "";
  return [
    `Exported: ${exported_at}`,
    `Model: ${model} (medv_ray ${medv_ray}, ${endpoint})`,
    `Picture: ${picture.type}, ${picture.bytes} bytes${digest}`,
  ];
}

function details(answer: Said): string {
  const parts = [answer.status === "done" ? "" : `${answer.status}, unfinished`];
  if (answer.confidence !== null && answer.text)
    parts.push(`mean confidence ${percent(answer.confidence)} % (not calibrated)`);
  if (answer.forward_passes !== null) parts.push(`${answer.forward_passes} forward passes`);
  if (answer.seed !== null) parts.push(`seed ${answer.seed}`);
  return [...parts.filter(Boolean), `${answer.seconds.toFixed(1)} s`].join(", ");
}

/** As a block quote in which nothing of the text is taken for Markdown or HTML. */
const quoted = (text: string): string =>
  text
    .split("\n")
    .map((line) => `> ${line.replace(/[\\`*_{}[\]()#+\-.!|~<>&]/g, "\\$&")}`)
    .join("\n");

const MARKS: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escaped = (text: string): string => text.replace(/[&<>"']/g, (mark) => MARKS[mark] ?? mark);

/** Give the browser a file to keep. */
export function save(content: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Hex, or null: over plain http of another host the browser lends no digests. */
export async function sha256(content: Blob): Promise<string | null> {
  const digest = await crypto.subtle?.digest("SHA-256", await content.arrayBuffer());
  return digest ? [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("") : null;
}
