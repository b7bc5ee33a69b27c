import { expect, test } from "vitest";
import { after, cellsAt, endOf, idsBefore, nothing, percent, shown } from "./denoise";

const commit = (position: number, token: string) => ({ position, token, token_id: 10 + position, confidence: 0.5 });
const state = [
  { index: 0, step: 0, length: 4, committed: [commit(2, "<|eot_id|>")] },
  { index: 0, step: 1, length: 4, committed: [] },
  { index: 0, step: 2, length: 4, committed: [commit(0, "two"), commit(1, " cells")] },
].reduce(after, nothing);

test("the state after some steps holds what they committed", () => {
  const words = (steps: number) => cellsAt(state, steps).map((cell) => cell?.token ?? null);
  expect(words(0)).toEqual([null, null, null, null]);
  expect(words(2)).toEqual([null, null, "<|eot_id|>", null]);
  expect(words(3)).toEqual(["two", " cells", "<|eot_id|>", null]);
  expect(state.steps).toBe(3);
  expect(endOf(cellsAt(state, 3), true)).toBe(2);
  expect(endOf(cellsAt(state, 0), false)).toBe(4);
  expect(endOf(cellsAt({ ...state, commits: state.commits.slice(1) }, 3), true)).toBe(2);
});

test("an inspection starts before the token's own step, masks included", () => {
  const [cell] = cellsAt(state, 3);
  expect(cell && idsBefore(state, cell)).toEqual([null, null, 12, null]);
});

test("tokens and shares are written so that one sees them", () => {
  expect([" cells", "\n", " ", "", "<|endoftext|>"].map(shown)).toEqual(["cells", "↵", "␣", "∅", "end"]);
  expect([1, 0.9999, 0.98, 0.004, 1e-5, 0].map(percent)).toEqual(["100", "99.9", "98", "0.4", "<0.1", "0"]);
});
