// The one token that is looked at, and what the endpoint says about it.

import { inspect, type Attention, type Inspection } from "./api";
import { idsAt, shown, type Commit } from "./denoise";
import { givenUrl, type Picture } from "./picture";
import type { Turn } from "./turn.svelte";

export interface Target {
  turn: Turn;
  picture: Picture;
  position: number;
  /** Null for a position that is still masked. */
  commit: Commit | null;
  /** Steps before the state that is looked at. */
  steps: number;
}

const keyOf = ({ turn, position, steps }: Target): string => `${turn.id} ${position} ${steps}`;

/** A pointer that crosses a row of tokens must not start a forward pass for each of them. */
const REST_MS = 180;

class Inspector {
  /** Under the pointer: goes when the pointer goes. */
  #pointed = $state.raw<Target | null>(null);
  /** Focused or tapped: stays until another one is, or Escape. */
  #pinned = $state.raw<Target | null>(null);
  inspection = $state.raw<Inspection | null>(null);
  failed = $state("");
  /** The heat map is wanted. */
  heat = $state(true);

  readonly #maps = $derived(this.inspection?.attention.filter(({ image }) => image === 0) ?? []);
  /** The frame on which the map lies, where another one is shown; else 0. It would mislead there. */
  readonly elsewhere = $derived.by(() => {
    const [asked, seen] = [this.active?.turn.given.frame ?? 0, this.active?.picture.look.reading?.frame ?? 0];
    return this.#maps.length > 0 && asked > 0 && seen > 0 && asked !== seen ? asked : 0;
  });

  #asked: string | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #controller: AbortController | null = null;

  get active(): Target | null {
    return this.#pointed ?? this.#pinned;
  }

  /** What is looked at, as a cell shows it. */
  get word(): string {
    return this.active?.commit ? shown(this.active.commit.token) : "the mask";
  }

  /** The token's attention over the picture that is shown. */
  get grids(): Attention[] {
    return this.elsewhere ? [] : this.#maps;
  }

  point(target: Target | null): void {
    this.#pointed = target;
    this.#look();
  }

  pin(target: Target | null): void {
    this.#pinned = target;
    this.#look();
  }

  clear(): void {
    this.#pointed = null;
    this.pin(null);
  }

  /** Tokens of an answer that is being made are not inspected: that would slow it down. */
  finished(turn: Turn): void {
    if (this.active?.turn === turn) this.#look();
  }

  #look(): void {
    const target = this.active;
    const wanted = target?.turn.finished ? keyOf(target) : null;
    if (wanted === this.#asked) return;
    this.#asked = wanted;
    clearTimeout(this.#timer);
    this.#controller?.abort();
    this.failed = "";
    this.inspection = wanted ? (target?.turn.inspections.get(wanted) ?? null) : null;
    if (target && wanted && !this.inspection)
      this.#timer = setTimeout(() => void this.#fetch(target), REST_MS);
  }

  async #fetch(target: Target): Promise<void> {
    const { turn, position, steps } = target;
    const wanted = keyOf(target);
    const controller = new AbortController();
    this.#controller = controller;
    try {
      const question = turn.request(await givenUrl(turn));
      const state = { tokens: idsAt(turn.denoise, steps), position };
      const inspection = await inspect(question, state, controller.signal);
      turn.inspections.set(wanted, inspection);
      if (this.#asked === wanted) this.inspection = inspection;
    } catch (error) {
      if (controller.signal.aborted || this.#asked !== wanted) return;
      this.failed = error instanceof Error ? error.message : String(error);
      // Not remembered: pointing at the token again tries again.
      this.#asked = null;
    }
  }
}

export const inspector = new Inspector();
