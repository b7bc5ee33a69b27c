// The answer's states, step by step. Pure: events in, states out.

import type { Committed, DenoiseEvent, Place } from "./api";

export interface Commit extends Committed {
  /** -1 for what is given. */
  step: number;
}

export interface Denoise {
  /** Positions of the answer, end and padding included; 0 before the first event. */
  length: number;
  /** Steps seen so far; the state after all of them is the newest one. */
  steps: number;
  /** In the order in which they were committed. */
  commits: Commit[];
  /** Of an answer in a form; null for a free one. */
  blanks: Place[] | null;
}

export const nothing: Denoise = { length: 0, steps: 0, commits: [], blanks: null };

export function after(state: Denoise, event: DenoiseEvent): Denoise {
  const commits = event.committed.map((token) => ({ ...token, step: event.step }));
  return {
    length: event.length,
    steps: Math.max(state.steps, event.step + 1),
    commits: [...state.commits, ...commits],
    blanks: event.blanks ?? state.blanks,
  };
}

/** One entry a position: what the first `steps` steps committed there, null for the mask. */
export function cellsAt(state: Denoise, steps: number): (Commit | null)[] {
  const cells = new Array<Commit | null>(state.length).fill(null);
  for (const commit of state.commits) if (commit.step < steps) cells[commit.position] = commit;
  return cells;
}

/** Token ids after `steps` steps: the state that an inspection starts from. */
export const idsAt = (state: Denoise, steps: number): (number | null)[] =>
  cellsAt(state, steps).map((cell) => cell?.token_id ?? null);

/** `<|eot_id|>`, `<|endoftext|>`: written by name, not part of the answer. */
export const isSpecial = (token: string): boolean => /^<\|.*\|>$/.test(token);

/** How many positions belong to the answer; all of them as long as no end is known.
 *
 * `whole`: the answer is there. Then it also ends before the first mask that was left: the endpoint
 * does not always tell an end of turn that came with the last step.
 */
export function endOf(cells: readonly (Commit | null)[], whole: boolean): number {
  const end = cells.findIndex((cell) => (cell === null ? whole : isSpecial(cell.token)));
  return end < 0 ? cells.length : end;
}

/** Whether a token goes on with the word of the one before it, as far as that one is known. */
export const continues = (token: string, before: string | undefined): boolean =>
  !/^(\s|<\|)/.test(token) && !/\s$/.test(before ?? "");

/** A token as a cell shows it: white space would be invisible. */
export function shown(token: string): string {
  if (isSpecial(token)) return "end";
  if (token === "") return "∅";
  if (token.trim() === "") return token.includes("\n") ? "↵" : "␣";
  return token.trim();
}

/** Whole percent, with a decimal where that would say "certain" or "never". */
export function percent(share: number): string {
  const value = share * 100;
  if (value > 0 && value < 0.05) return "<0.1";
  if (value > 99 && value < 100) return Math.min(99.9, value).toFixed(1);
  return value.toFixed(value > 0 && value < 1 ? 1 : 0);
}

/** The left part of the answer as it reads after some steps; a mask is shown as ▢. */
export const textAt = (cells: readonly (Commit | null)[], end: number): string =>
  cells
    .slice(0, end)
    .map((cell) => (cell ? (isSpecial(cell.token) ? "" : cell.token) : MASK))
    .join("")
    .trim();

/** How a blank reads after some steps, up to its first end token, and how sure its tokens were. */
export function blankAt(
  { start, stop }: Place,
  cells: readonly (Commit | null)[],
  unused: ReadonlySet<number> = new Set(),
): { text: string; confidence: number | null } {
  const all = cells.slice(start, stop).filter((_, i) => !unused.has(start + i));
  const end = endOf(all, false);
  const said = all.slice(0, end).filter((cell) => cell !== null);
  const sum = said.reduce((before, cell) => before + cell.confidence, 0);
  return { text: textAt(all, end), confidence: said.length > 0 ? sum / said.length : null };
}

/** Positions of a form that are no part of the answer: end tokens, and what stands behind one in a blank. */
export function tailsOf(cells: readonly (Commit | null)[], blanks: readonly Place[]): number[] {
  const behind = blanks.map(({ start, stop }) => [start + endOf(cells.slice(start, stop), false), stop] as const);
  return [...cells.keys()].filter((i) => {
    const cell = cells[i];
    return (cell && !cell.pinned && isSpecial(cell.token)) || behind.some(([end, stop]) => end <= i && i < stop);
  });
}

/** A blank's value in words. */
export const written = (value: unknown): string =>
  typeof value === "string" ? value.trim() || "(empty)" : value === null ? "null" : String(value);

const MASK = " ▢";

/** What one step wrote before `end`: neighbours that it committed together are one entry. */
export function wordsOf(cells: readonly (Commit | null)[], step: number, end: number): string[] {
  const runs: string[] = [];
  let before = false;
  for (const cell of cells.slice(0, end)) {
    const now = cell?.step === step && !isSpecial(cell.token);
    if (now) runs.push((before ? (runs.pop() ?? "") : "") + cell.token);
    before = now;
  }
  return runs.map((run) => run.trim()).filter((run) => run !== "");
}

/** Positions before either end at which two answers hold different tokens. */
export function differences(one: Denoise, other: Denoise, ends: [number, number]): Set<number> {
  const [a, b] = [cellsAt(one, one.steps), cellsAt(other, other.steps)];
  const found = new Set<number>();
  for (let i = 0; i < Math.max(...ends); i++) if (a[i]?.token_id !== b[i]?.token_id) found.add(i);
  return found;
}
