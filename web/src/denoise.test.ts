import { expect, test } from "vitest";
import { after, blankAt, cellsAt, endOf, idsAt, nothing, percent, shown, tailsOf, textAt, written } from "./denoise";

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
  expect(cell && idsAt(state, cell.step)).toEqual([null, null, 12, null]);
});

test("tokens and shares are written so that one sees them", () => {
  expect([" cells", "\n", " ", "", "<|endoftext|>"].map(shown)).toEqual(["cells", "↵", "␣", "∅", "end"]);
  expect([1, 0.9999, 0.98, 0.004, 1e-5, 0].map(percent)).toEqual(["100", "99.9", "98", "0.4", "<0.1", "0"]);
});

test("a blank reads up to its first end token; what is given is not the model's", () => {
  const end = "<|eot_id|>";
  const given = { index: 0, step: -1, length: 6, blanks: [{ name: "size", start: 1, stop: 5 }] };
  const form = [
    { ...given, committed: [commit(0, "Size:"), commit(5, end)].map((one) => ({ ...one, pinned: true })) },
    { index: 0, step: 0, length: 6, committed: [commit(3, end)] },
    { index: 0, step: 1, length: 6, committed: [commit(1, " 12"), commit(4, " mm")] },
    { index: 0, step: 2, length: 6, committed: [commit(2, "0")] },
  ].reduce(after, nothing);
  const [size] = form.blanks ?? [];
  const at = (steps: number) => size && blankAt(size, cellsAt(form, steps));
  expect(form.steps).toBe(3);
  expect(at(0)).toEqual({ text: "▢ ▢ ▢ ▢", confidence: null });
  expect(at(2)).toEqual({ text: "12 ▢", confidence: 0.5 });
  expect(at(3)).toEqual({ text: "120", confidence: 0.5 });
  const tails = tailsOf(cellsAt(form, 3), form.blanks ?? []);
  expect(tails).toEqual([3, 4]);
  expect(size && blankAt(size, cellsAt(form, 0), new Set(tails)).text).toBe("▢ ▢");
  expect(textAt(cellsAt(form, 3).filter((_, i) => !tails.includes(i)), 6)).toBe("Size: 120");
  expect([" a", "", null, true, 3].map(written)).toEqual(["a", "(empty)", "null", "true", "3"]);
});
