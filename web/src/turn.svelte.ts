// One question and what becomes of it.

import type { Chunk, Form, Inspection, Message, Question, Summary } from "./api";
import { after, cellsAt, differences, endOf, nothing, tailsOf, type Denoise } from "./denoise";
import type { Said } from "./export";
import type { Given } from "./look.svelte";
import type { Chosen } from "./settings";

export type Status = "asking" | "done" | "stopped" | "failed";

/** What a turn is asked with, beside its words. */
export type Asked = Omit<Question, "messages">;

let turns = 0;

export class Turn {
  readonly id = ++turns;
  status = $state<Status>("asking");
  denoise = $state.raw<Denoise>(nothing);
  text = $state("");
  summary = $state.raw<Summary | null>(null);
  seconds = $state(0);
  /** Steps that the scrub bar shows; null follows the newest. */
  scrubbed = $state<number | null>(null);
  /** Of the newest state, whichever step is shown: what belongs to the answer does not change. */
  readonly end = $derived.by(() => {
    const cells = cellsAt(this.denoise, this.denoise.steps);
    return this.form ? cells.length : endOf(cells, this.status === "done");
  });
  /** Positions of a form that are no part of the answer, as far as it is known. */
  readonly unused = $derived.by(() => {
    const cells = cellsAt(this.denoise, this.denoise.steps);
    return new Set([...tailsOf(cells, this.denoise.blanks ?? []), ...(this.summary?.left_out ?? [])]);
  });

  /** What an end token means. */
  readonly ending: string;
  /** With a temperature: another seed gives another answer. */
  readonly sampled: boolean;
  /** The preset it is asked with. */
  readonly preset: string;
  /** The same question with another preset, to be compared. */
  beside = $state<Turn | null>(null);
  readonly differences = $derived.by(() => {
    const { beside } = this;
    const both = beside?.status === "done" && this.status === "done";
    return both ? differences(this.denoise, beside.denoise, [this.end, beside.end]) : null;
  });
  readonly asked_at = new Date();
  /** What the endpoint said of its positions, by `keyOf` of the inspector. */
  readonly inspections = new Map<string, Inspection>();

  constructor(
    readonly question: string,
    /** Earlier turns of the dialogue, as the request had them. */
    readonly before: readonly Turn[],
    readonly asked: Asked,
    readonly settings: Chosen,
    /** The picture that it is asked about. */
    readonly given: Given,
    /** The form of its answer; null for free text. */
    readonly form: Form | null = null,
  ) {
    this.sampled = settings.temperature > 0;
    this.preset = settings.preset;
    this.ending = form ? "end of the blank" : "end of turn";
  }

  get finished(): boolean {
    return this.status !== "asking";
  }

  get shownSteps(): number {
    return this.scrubbed ?? this.denoise.steps;
  }

  /** The answer filled its whole length without an end of turn. */
  get cutShort(): boolean {
    return !this.form && this.status === "done" && this.end > 0 && this.end === this.denoise.length;
  }

  take(chunk: Chunk): void {
    if (chunk.denoise?.index === 0) this.denoise = after(this.denoise, chunk.denoise);
    const choice = chunk.choices?.find(({ index }) => index === 0);
    this.text += choice?.delta?.content ?? "";
    this.summary = choice?.medv ?? chunk.medv ?? this.summary;
  }

  get said(): Said {
    const { preset, text, status, seconds, summary } = this;
    const { confidence = null, forward_passes = null, seed = null, warnings = [] } = summary ?? {};
    return { preset, text, status, confidence, forward_passes, seed, seconds, warnings, blanks: summary?.blanks ?? [] };
  }

  get empty(): boolean {
    return (this.form !== null || this.text === "") && this.denoise.commits.every(({ pinned }) => pinned);
  }

  /** The request with `image` as the picture's address; the picture stands in the first message. */
  request(image: string): Question {
    const texts = [...this.before, this].map((turn) => turn.question);
    const messages = texts.flatMap((text, i): Message[] => {
      const earlier = this.before[i];
      const user: Message = { role: "user", content: i > 0 ? text : withImage(text, image) };
      return earlier ? [user, { role: "assistant", content: earlier.text }] : [user];
    });
    return { ...this.asked, messages };
  }
}

const withImage = (text: string, url: string): Message["content"] => [
  { type: "image_url", image_url: { url } },
  { type: "text", text },
];
