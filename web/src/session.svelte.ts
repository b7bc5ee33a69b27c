// What happens on this page, from the first picture to "Clear all". In memory only: the images are
// patients' data, and nothing of them may outlive the tab.

import { address, chat, models, version, type Model } from "./api";
import { Countdown } from "./countdown.svelte";
import { curl, IMAGE } from "./curl";
import { NOTICE, sha256, type Exported, type Seen } from "./export";
import { formBox } from "./form.svelte";
import { inspector } from "./inspector.svelte";
import { withKey } from "./key.svelte";
import type { Given } from "./look.svelte";
import { blobUrl, dataUrl, forget, givenUrl, pictureOf, tooLarge, typeOf, type Picture } from "./picture";
import { noteOf, problemOf, type Problem } from "./problem";
import { differing, withChange, type Chosen } from "./settings";
import { Turn } from "./turn.svelte";

const AUTOMATIC_RETRIES = 3;
/** The reference's tokens, and the preset whose difference from them one wants to see. */
const COMPARED = ["exact", "fast"] as const;

export class Conversation {
  turns = $state<Turn[]>([]);
  constructor(readonly picture: Picture) {}

  /** What a follow-up question builds on. */
  get answered(): Turn[] {
    return this.turns.filter((turn) => turn.status === "done");
  }
}

class Session {
  models = $state.raw<Model[]>([]);
  model = $state.raw<Model | null>(null);
  chosen = $state.raw<Chosen | null>(null);
  conversation = $state<Conversation | null>(null);
  /** Newest first. */
  history = $state<Conversation[]>([]);
  draft = $state("");
  /** Each question is asked with two presets. */
  compared = $state(false);
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
      this.problem = first ? null : { ...noteOf("The endpoint lists no model."), again: true };
    } catch (error) {
      this.problem = problemOf(error);
    }
  }

  use(model: Model): void {
    this.model = model;
    this.resetSettings();
    const look = this.conversation?.picture.look;
    void look?.load(model.id, look.isOwn ? 0 : look.frame);
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
    if (message !== null) return;
    const picture = await pictureOf(file);
    this.open(new Conversation(picture));
    if (this.model) void picture.look.load(this.model.id);
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
    formBox.clear();
  }

  /** Whether this endpoint has the two presets. */
  get comparable(): boolean {
    return COMPARED.every((preset) => this.model?.medv.presets.includes(preset));
  }

  /** What the draft would be asked with. Null while there is no picture or no model. Raises FormError. */
  next(question: string): Turn | null {
    const { conversation, model } = this;
    if (!conversation || !model || !this.chosen) return null;
    const both = this.compared && this.comparable;
    const turn = this.#turn(question, conversation, model, both ? { ...this.chosen, preset: COMPARED[0] } : this.chosen);
    if (both) turn.beside = this.#turn(question, conversation, model, { ...this.chosen, preset: COMPARED[1] });
    return turn;
  }

  #turn(question: string, conversation: Conversation, model: Model, chosen: Chosen): Turn {
    const form = formBox.asked;
    const asked = { model: model.id, ...differing(chosen, model.medv.sampler, form) };
    return new Turn(question, conversation.answered, asked, chosen, conversation.picture.look.given(), form);
  }

  /** The draft. `automatic`: by the clock, after the endpoint asked for patience. */
  async ask(automatic = false): Promise<void> {
    const question = this.draft.trim();
    const { conversation } = this;
    if (this.busy) return;
    if (!automatic) this.#retries = 0;
    this.wait.stop();
    if (!this.model) await this.start();
    formBox.praise();
    let turn: Turn | null;
    try {
      turn = this.next(question);
    } catch (error) {
      if (formBox.blame(error)) return;
      throw error;
    }
    if (!conversation || !turn || question === "") {
      const message = conversation ? "Write a question first." : "Add an image first.";
      if (this.model) this.problem = noteOf(message);
      return;
    }
    this.problem = null;
    this.draft = "";
    // On a phone the box would cover the answer.
    if (matchMedia("(max-width: 44rem)").matches) formBox.open = false;
    const last = conversation.turns.at(-1);
    // The map of an earlier answer's token would look like one of this answer.
    inspector.clear();
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
    if (!turn || !picture) return null;
    const [type, name] = turn.given.about ? ["image/png", "shown.png"] : [typeOf(picture.file), picture.name];
    return curl(turn.request(IMAGE), type, name);
  }

  /** This dialogue, for a file. Rejects when the picture can no longer be read. */
  async exported(withPicture: boolean): Promise<Exported> {
    const { conversation } = this;
    if (!conversation) throw new Error("There is no dialogue yet.");
    const { file } = conversation.picture;
    const answered = conversation.turns.filter((turn) => turn.finished);
    const looks: Seen[] = [];
    for (const { given } of answered) {
      if (looks.some(({ about }) => about === given.about)) continue;
      looks.push({ about: given.about, data: withPicture ? await seenUrl(conversation.picture, given) : null });
    }
    return {
      notice: NOTICE,
      exported_at: new Date().toISOString(),
      endpoint: address("v1"),
      model: answered.at(-1)?.asked.model ?? "",
      medv_ray: await version().catch(() => "unknown"),
      picture: { type: typeOf(file), bytes: file.size, sha256: await sha256(file) },
      looks,
      turns: answered.map((turn) => ({
        question: turn.question,
        asked_at: turn.asked_at.toISOString(),
        look: looks.findIndex(({ about }) => about === turn.given.about),
        settings: turn.settings,
        form: turn.form,
        answers: (turn.beside ? [turn, turn.beside] : [turn]).map((one) => one.said),
      })),
    };
  }

  async #run(conversation: Conversation, turn: Turn): Promise<void> {
    const controller = new AbortController();
    this.busy = controller;
    let asking = turn;
    try {
      await this.#answer(turn, controller.signal);
      this.#retries = 0;
      if (turn.beside) await this.#answer((asking = turn.beside), controller.signal);
    } catch (error) {
      asking.status = controller.signal.aborted ? "stopped" : "failed";
      if (turn.empty) this.#withdraw(conversation, turn);
      if (asking.status === "failed" && asking === turn) this.#fail(error, turn);
      // The first answer is there: asking for both again is the user's choice.
      else if (asking.status === "failed") this.problem = { ...problemOf(error), again: false };
    } finally {
      if (turn.beside?.status === "asking") turn.beside = null;
      if (this.busy === controller) this.busy = null;
      inspector.finished(turn);
    }
  }

  async #answer(turn: Turn, signal: AbortSignal): Promise<void> {
    const start = performance.now();
    const body = await this.#body(turn);
    await withKey(async () => {
      for await (const chunk of chat(body, signal)) {
        turn.take(chunk);
        turn.seconds = (performance.now() - start) / 1000;
      }
    });
    turn.status = "done";
  }

  async #body(turn: Turn): Promise<string> {
    const body = JSON.stringify({
      ...turn.request(await givenUrl(turn)),
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
    this.draft ||= turn.question;
    // Another form may stand in the box by now.
    if (formBox.kind && turn.form?.[formBox.kind] !== undefined && formBox.blame(error)) return;
    this.problem = problemOf(error);
    const { wait } = this.problem;
    if (wait === null || this.#retries >= AUTOMATIC_RETRIES) return;
    this.#retries += 1;
    this.wait.start(wait, () => void this.ask(true));
  }
}

/** A picture as it was seen when a question was asked; null where nothing shows it. */
async function seenUrl({ file, url }: Picture, { seen }: Given): Promise<string | null> {
  return seen ? blobUrl(await seen) : url && dataUrl(file);
}

export const session = new Session();
