import { expect, test } from "vitest";
import { blockLengths, differing, genLengths, stepCounts, withChange, type Chosen } from "./settings";

const limits = { max_body_bytes: 1e6, max_gen_length: 512, max_steps: 128 };
const start: Chosen = {
  preset: "exact",
  gen_length: 64,
  block_length: 64,
  steps: 64,
  temperature: 0,
  seed: null,
};

test("every choice that is offered divides", () => {
  for (const gen_length of genLengths(512, 64))
    for (const block_length of blockLengths(gen_length)) {
      expect(gen_length % block_length).toBe(0);
      const blocks = gen_length / block_length;
      const counts = stepCounts(gen_length, block_length, limits.max_steps);
      expect(counts.length).toBeGreaterThan(0);
      expect(counts.every((steps) => steps % blocks === 0)).toBe(true);
    }
});

test("a change moves the others as far as the rules ask", () => {
  const all = withChange(start, { gen_length: 24 }, limits);
  expect([all.gen_length, all.block_length, all.steps]).toEqual([24, 24, 24]);
  const blocks = withChange(all, { block_length: 7 }, limits);
  expect([blocks.block_length, blocks.steps]).toEqual([6, 24]);
  expect(withChange(blocks, { steps: 9 }, limits).steps).toBe(8);
  expect(withChange(start, { gen_length: 9999 }, limits).gen_length).toBe(512);
  expect(withChange(start, { temperature: Number.NaN }, limits).temperature).toBe(0);
});

test("only differences are sent", () => {
  expect(differing(start, start)).toEqual({});
  expect(differing({ ...start, preset: "fast", steps: 32, seed: 0 }, start)).toEqual({
    seed: 0,
    diffusion: { preset: "fast", steps: 32 },
  });
});
