// A dialogue as a file that holds everything it needs. Pure but for `save`.

import type { Blank, Form, Sampler } from "./api";
import { percent, written } from "./denoise";
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
  /** Of an answer in a form. */
  blanks: readonly Blank[];
}

export interface Exported {
  notice: string;
  exported_at: string;
  endpoint: string;
  model: string;
  medv_ray: string;
  /** The file, without its name, which may be a patient's. */
  picture: { type: string; bytes: number; sha256: string | null };
  /** How it was looked at. */
  looks: Seen[];
  /** `look`: which of `looks`, from 0. */
  turns: { question: string; asked_at: string; look: number; settings: Partial<Sampler>; form: Form | null; answers: Said[] }[];
}

export interface Seen {
  /** Frame and window in words; empty for the file as it came. */
  about: string;
  /** A data: address; null where no picture was wanted, or none can be shown. */
  data: string | null;
}

export const asJson = (dialogue: Exported): string => JSON.stringify(dialogue, null, 2) + "\n";

export function asMarkdown(dialogue: Exported): string {
  const { looks } = dialogue;
  const lines = ["# Dialogue about a picture", "", `> **${NOTICE}**`, "", ...facts(dialogue).map((fact) => `- ${fact}`), ""];
  for (const [i, turn] of dialogue.turns.entries()) {
    if (turn.look !== dialogue.turns[i - 1]?.look) {
      const { about, data } = looks[turn.look] ?? NOWHERE;
      lines.push(`Asked about: ${about || AS_IT_CAME}`, "");
      if (data) lines.push(`![The picture][picture${turn.look + 1}]`, "");
    }
    lines.push(`## ${i + 1}. Question`, "", quoted(turn.question), "");
    if (turn.form) lines.push("**Form of the answer**", "", quoted(formText(turn.form)), "");
    for (const answer of turn.answers) {
      lines.push(`**Answer** (${answer.preset})`, "", quoted(answer.text || "(no answer)"), "", details(answer), "");
      lines.push(...answer.blanks.map((blank) => `- ${quoted(blankText(blank)).slice(2)}`), "");
      lines.push(...answer.warnings.map((word) => `- ${sentence(word)}`), "");
    }
  }
  looks.forEach(({ data }, i) => data && lines.push(`[picture${i + 1}]: ${data}`, ""));
  return lines.join("\n").replace(/\n{3,}/g, "\n\n");
}

export function asHtml(dialogue: Exported): string {
  const turns = dialogue.turns.map(
    (turn, i) => `${turn.look === dialogue.turns[i - 1]?.look ? "" : figure(dialogue.looks[turn.look] ?? NOWHERE)}
<section><h2>${i + 1}. ${escaped(turn.question)}</h2>
${turn.form ? `<p class="quiet">Form of the answer:</p><pre>${escaped(formText(turn.form))}</pre>` : ""}
${turn.answers
  .map(
    (answer) => `<blockquote>${escaped(answer.text || "(no answer)")}</blockquote>
<p class="quiet">${escaped(answer.preset)}: ${escaped(details(answer))}</p>
<ul>${answer.blanks.map((blank) => `<li>${escaped(blankText(blank))}</li>`).join("")}</ul>
${answer.warnings.map((word) => `<p class="quiet">${escaped(sentence(word))}</p>`).join("\n")}`,
  )
  .join("\n")}</section>`,
  );
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
figure { margin: 1.5rem 0 0 } img { max-width: 100%; max-height: 70vh }
blockquote { margin: .5rem 0; padding-left: .9rem; border-left: 3px solid; font-size: 1.15rem; white-space: pre-wrap }
h1, h2 { line-height: 1.25; overflow-wrap: anywhere } h2 { font-size: 1.1rem; white-space: pre-wrap }
li, pre { overflow-wrap: anywhere; white-space: pre-wrap }
</style></head><body>
<h1>Dialogue about a picture</h1>
<p class="notice">${NOTICE}</p>
<ul>${facts(dialogue).map((fact) => `<li>${escaped(fact)}</li>`).join("")}</ul>
${turns.join("\n")}
</body></html>
`;
}

const NOWHERE: Seen = { about: "", data: null };
const AS_IT_CAME = "the file as it came";

function figure({ about, data }: Seen): string {
  const shown = data ? `<img src="${escaped(data)}" alt="The picture that was asked about">` : "";
  return `<figure>${shown}<figcaption class="quiet">Asked about: ${escaped(about || AS_IT_CAME)}</figcaption></figure>`;
}

function facts({ exported_at, endpoint, model, medv_ray, picture }: Exported): string[] {
  const digest = picture.sha256 ? `, sha256 ${picture.sha256}` : "";
  return [
    `Exported: ${exported_at}`,
    `Model: ${model} (medv_ray ${medv_ray}, ${endpoint})`,
    `Picture: ${picture.type}, ${picture.bytes} bytes${digest}`,
  ];
}

/** As it was written. */
const formText = ({ choices, canvas, json_schema }: Form): string =>
  choices?.join("\n") ?? canvas ?? JSON.stringify(json_schema, null, 2);

function blankText({ name, value, confidence, probabilities = {} }: Blank): string {
  const shares = Object.entries(probabilities).map(([text, share]) => `${text} ${percent(share)} %`);
  return `${name}: ${written(value)} (${[`confidence ${percent(confidence)} %`, ...shares].join("; ")})`;
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
