// Which sampler settings go together: block_length divides gen_length, and steps is a multiple of
// the number of blocks (the endpoint refuses everything else with E1002).

import type { Form, Limits, Question, Sampler } from "./api";

export interface Chosen extends Sampler {
  /** null leaves it to the endpoint. */
  seed: number | null;
}

export const blockLengths = (gen_length: number): number[] =>
  range(1, gen_length).filter((block) => gen_length % block === 0);

/** Not above gen_length: every step commits at least one token, so more steps have nothing to do. */
export function stepCounts(gen_length: number, block_length: number, max_steps: number): number[] {
  const blocks = gen_length / block_length;
  const most = Math.max(blocks, Math.min(gen_length, max_steps));
  return range(1, Math.floor(most / blocks)).map((share) => share * blocks);
}

/** Slider positions; every whole number can still be typed. */
export function genLengths(most: number, ...kept: number[]): number[] {
  const even = range(1, most).filter((n) => n <= 8 || (n <= 64 ? n % 4 === 0 : n % 16 === 0));
  return [...new Set([...even, ...kept, most])].sort((a, b) => a - b);
}

export function nearest(values: readonly number[], wanted: number): number {
  return values.reduce((best, value) => (Math.abs(value - wanted) < Math.abs(best - wanted) ? value : best));
}

/** The chosen settings with one of them changed and the others moved as far as the rules ask. */
export function withChange(chosen: Chosen, change: Partial<Chosen>, limits: Limits): Chosen {
  const next = { ...chosen, ...change };
  next.gen_length = Math.round(clamp(next.gen_length, 1, limits.max_gen_length));
  // "All of it" is what L = B = Z means, so it stays all of it when L moves.
  const oneBlock = chosen.block_length === chosen.gen_length && !("block_length" in change);
  next.block_length = nearest(blockLengths(next.gen_length), oneBlock ? next.gen_length : next.block_length);
  const oneEach = chosen.steps === chosen.gen_length && !("steps" in change);
  const counts = stepCounts(next.gen_length, next.block_length, limits.max_steps);
  next.steps = nearest(counts, oneEach ? next.gen_length : next.steps);
  next.temperature = clamp(next.temperature, 0, 2);
  return next;
}

/** The part of a request that says what differs from the model's defaults, and the answer's form. */
export function differing(
  chosen: Chosen,
  defaults: Sampler,
  form: Form | null = null,
): Pick<Question, "temperature" | "seed" | "diffusion"> {
  const diffusion: Question["diffusion"] = { ...form };
  if (chosen.preset !== defaults.preset) diffusion.preset = chosen.preset;
  for (const name of ["gen_length", "block_length", "steps"] as const)
    if (chosen[name] !== defaults[name]) diffusion[name] = chosen[name];
  return {
    ...(chosen.temperature !== defaults.temperature && { temperature: chosen.temperature }),
    ...(chosen.seed !== null && { seed: chosen.seed }),
    ...(Object.keys(diffusion).length > 0 && { diffusion }),
  };
}

export const clamp = (value: number, low: number, high: number): number =>
  Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : low;

const range = (first: number, last: number): number[] =>
  Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => first + i);
