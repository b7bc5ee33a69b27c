// What happens on this page, from the first picture to "Clear all". In memory only: the images are
// patients' data, and nothing of them may outlive the tab.

import { ApiError, chat, models, NetworkError, type Model } from "./api";
import { Countdown } from "./countdown.svelte";
import { curl, IMAGE } from "./curl";
import { inspector } from "./inspector.svelte";
import { withKey } from "./key.svelte";
import { dataUrl, forget, pictureOf, tooLarge, typeOf, type Picture } from "./picture";
import { differing, withChange, type Chosen } from "./settings";
import { Turn } from "./turn.svelte";

const AUTOMATIC_RETRIES = 3;

export class Conversation {
  turns = $state<Turn[]>([]);
  constructor(readonly picture: Picture) {}

  /** What a follow-up question builds on. */
  get answered(): Turn[] {
    return this.turns.filter((turn) => turn.status === "done");
  }
}

export interface Problem {
  code: string;
  message: string;
  /** Asking again may help. */
  again: boolean;
}

class Session {
  models = $state.raw<Model[]>([]);
  model = $state.raw<Model | null>(null);
  chosen = $state.raw<Chosen | null>(null);
  conversation = $state<Conversation | null>(null);
  /** Newest first. */
  history = $state<Conversation[]>([]);
  draft = $state("");
  problem = $state.raw<Problem | null>(null);
  /** Why the last file was not taken. */
  refused = $state("");
  busy = $state.raw<AbortController | null>(null);
  readonly wait = new Countdown();
  #retries = 0;

  async start(): Promise<void> {
    try {
      this.models = await withKey(models);
      const [first] = this.models;
      if (first) this.use(first);
      this.problem = first ? null : { code: "", message: "The endpoint lists no model.", again: true };
    } catch (error) {
      this.problem = problemOf(error);
    }
  }

  use(model: Model): void {
    this.model = model;
    this.resetSettings();
  }

  resetSettings(): void {
    if (this.model) this.chosen = { ...this.model.medv.sampler, seed: null };
  }

  change(change: Partial<Chosen>): void {
    if (this.chosen && this.model) this.chosen = withChange(this.chosen, change, this.model.medv.limits);
  }

  async add(file: File): Promise<void> {
    const most = this.model?.medv.limits.max_body_bytes;
    const message = file.size === 0 ? `${file.name} is empty.` : most ? tooLarge(file, most) : null;
    this.refused = message ?? "";
    if (message === null) this.open(new Conversation(await pictureOf(file)));
  }

  /** Another conversation in the place of this one, which stays in the history if it says anything. */
  open(conversation: Conversation | null): void {
    this.stop();
    inspector.clear();
    this.problem = null;
    this.refused = "";
    const left = this.conversation;
    this.conversation = conversation;
    if (left && !this.history.includes(left) && left.picture !== conversation?.picture) forget(left.picture);
  }

  startOver(): void {
    if (this.conversation) this.open(new Conversation(this.conversation.picture));
  }

  clear(): void {
    const pictures = new Set(this.history.map(({ picture }) => picture));
    this.history = [];
    if (this.conversation) pictures.add(this.conversation.picture);
    this.open(null);
    pictures.forEach(forget);
    this.draft = "";
  }

  /** What the draft would be asked with. Null while there is no picture or no model. */
  next(question: string): Turn | null {
    const { conversation, model, chosen } = this;
    if (!conversation || !model || !chosen) return null;
    const asked = { model: model.id, ...differing(chosen, model.medv.sampler) };
    return new Turn(question, conversation.answered, asked, chosen);
  }

  /** The draft. `automatic`: by the clock, after the endpoint asked for patience. */
  async ask(automatic = false): Promise<void> {
    const question = this.draft.trim();
    const { conversation } = this;
    if (this.busy) return;
    if (!automatic) this.#retries = 0;
    this.wait.stop();
    if (!this.model) await this.start();
    const turn = this.next(question);
    if (!conversation || !turn || question === "") {
      const message = conversation ? "Write a question first." : "Add an image first.";
      if (this.model) this.problem = { code: "", message, again: false };
      return;
    }
    this.problem = null;
    this.draft = "";
    const last = conversation.turns.at(-1);
    if (last?.status === "failed" && last.question === question) conversation.turns.pop();
    conversation.turns.push(turn);
    if (!this.history.includes(conversation)) this.history.unshift(conversation);
    await this.#run(conversation, turn);
  }

  stop(): void {
    this.busy?.abort();
    this.wait.stop();
    this.#retries = 0;
  }

  curl(): string | null {
    const picture = this.conversation?.picture;
    // with nothing written it is what was asked last, as it was asked
    const turn = this.draft.trim() ? this.next(this.draft.trim()) : this.conversation?.turns.at(-1);
    return turn && picture ? curl(turn.request(IMAGE), typeOf(picture.file), picture.name) : null;
  }

  async #run(conversation: Conversation, turn: Turn): Promise<void> {
    const controller = new AbortController();
    this.busy = controller;
    const start = performance.now();
    try {
      const body = await this.#body(conversation.picture, turn);
      await withKey(async () => {
        for await (const chunk of chat(body, controller.signal)) {
          turn.take(chunk);
          turn.seconds = (performance.now() - start) / 1000;
        }
      });
      turn.status = "done";
      this.#retries = 0;
    } catch (error) {
      turn.status = controller.signal.aborted ? "stopped" : "failed";
      if (turn.empty) this.#withdraw(conversation, turn);
      if (turn.status === "failed") this.#fail(error, turn);
    } finally {
      if (this.busy === controller) this.busy = null;
      inspector.finished(turn);
    }
  }

  async #body(picture: Picture, turn: Turn): Promise<string> {
    const body = JSON.stringify({
      ...turn.request(await dataUrl(picture.file)),
      stream: true,
      stream_options: { include_denoise: true, include_usage: true },
    });
    const most = this.model?.medv.limits.max_body_bytes ?? Infinity;
    if (new Blob([body]).size > most)
      throw new Error("Image and dialogue together are larger than this endpoint takes. Start a new conversation.");
    return body;
  }

  /** A question that brought nothing goes back to where it was typed. */
  #withdraw(conversation: Conversation, turn: Turn): void {
    conversation.turns = conversation.turns.filter((other) => other !== turn);
    if (conversation.turns.length === 0)
      this.history = this.history.filter((other) => other !== conversation);
    if (this.conversation === conversation) this.draft ||= turn.question;
  }

  #fail(error: unknown, turn: Turn): void {
    this.problem = problemOf(error);
    this.draft ||= turn.question;
    const wait = error instanceof ApiError ? error.retryAfter : null;
    if (wait === null || this.#retries >= AUTOMATIC_RETRIES) return;
    this.#retries += 1;
    this.wait.start(wait, () => void this.ask(true));
  }
}

function problemOf(error: unknown): Problem {
  const message = error instanceof Error ? error.message : String(error);
  if (error instanceof ApiError) {
    const { code, status } = error;
    // What is wrong with a request stays wrong; a stream (200) that ended in an error does not.
    const wrong = status >= 400 && status < 500 && ![401, 408, 429].includes(status);
    return { code, message, again: !wrong };
  }
  return { code: error instanceof NetworkError ? "Network" : "", message, again: true };
}

export const session = new Session();
