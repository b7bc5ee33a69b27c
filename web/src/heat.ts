// Attention over a picture, as colours on a canvas.

import type { Attention } from "./api";

/** From nothing to the highest weight: opacity rises with it, so that low attention hides nothing. */
const RAMP: [number, number, number, number][] = [
  [13, 58, 120, 0],
  [14, 116, 171, 0.3],
  [22, 178, 150, 0.55],
  [250, 210, 50, 0.72],
  [235, 70, 30, 0.82],
];
const SIDE = 512; // pixels of the canvas' longer side; CSS scales it to the picture

export const highest = (grids: readonly Attention[]): number =>
  Math.max(0, ...grids.flatMap(({ weights }) => weights.flat()));

/** Share of the token's attention that goes to the picture, 0 to 1. */
export const share = (grids: readonly Attention[]): number =>
  grids.flatMap(({ weights }) => weights.flat()).reduce((sum, weight) => sum + weight, 0);

export function draw(canvas: HTMLCanvasElement, grids: readonly Attention[], aspect: number): void {
  canvas.width = Math.max(1, Math.round(SIDE * Math.min(1, aspect)));
  canvas.height = Math.max(1, Math.round(SIDE / Math.max(1, aspect)));
  const pen = canvas.getContext("2d");
  const most = highest(grids);
  if (!pen || most <= 0) return;
  pen.imageSmoothingQuality = "high";
  for (const grid of grids) {
    const [left, top, right, bottom] = grid.box;
    const { width, height } = canvas;
    // The browser's own scaling between cells is the smoothing.
    pen.drawImage(cells(grid, most), left * width, top * height, (right - left) * width, (bottom - top) * height);
  }
}

function cells({ rows, columns, weights }: Attention, most: number): HTMLCanvasElement {
  const small = document.createElement("canvas");
  small.width = columns;
  small.height = rows;
  const image = new ImageData(columns, rows);
  weights.flat().forEach((weight, i) => image.data.set(colour(weight / most), i * 4));
  small.getContext("2d")?.putImageData(image, 0, 0);
  return small;
}

function colour(level: number): [number, number, number, number] {
  const at = Math.min(1, Math.max(0, level)) * (RAMP.length - 1);
  const i = Math.min(RAMP.length - 2, Math.floor(at));
  const [from, to] = [RAMP[i], RAMP[i + 1]];
  if (!from || !to) return [0, 0, 0, 0];
  const [r, g, b, a] = from.map((value, k) => value + ((to[k] ?? value) - value) * (at - i)) as typeof from;
  return [r, g, b, a * 255];
}
