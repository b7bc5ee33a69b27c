// Window and level of 16-bit values, and zoom of a picture. Pure.

export interface Window {
  level: number;
  width: number;
}

/** What a level and a width mean: PS3.3 C.11.2.1.2 and C.11.2.1.3. */
export type WindowFunction = "LINEAR" | "LINEAR_EXACT" | "SIGMOID";

/** Values of a picture: `low + step * number` for each of the numbers. */
export interface Values {
  columns: number;
  rows: number;
  numbers: Uint16Array;
  low: number;
  step: number;
  function: WindowFunction;
  /** Lowest and highest value, without padding. */
  range: [number, number];
  /** Black and white change places after the window. */
  inverted: boolean;
  /** Not 0 where the file draws white over every window. */
  overlay: Uint8Array | null;
  /** `HU` or empty. */
  unit: string;
}

/** Grey of a value, 0 to 255. */
export function grey(value: number, { level, width }: Window, rule: WindowFunction): number {
  if (rule === "SIGMOID") return bounded(255 / (1 + Math.exp((-4 * (value - level)) / width)));
  if (rule === "LINEAR_EXACT") return width > 0 ? bounded(((value - level) / width + 0.5) * 255) : 0;
  if (width <= 1) return value <= level - 0.5 ? 0 : 255;
  return bounded(((value - (level - 0.5)) / (width - 1) + 0.5) * 255);
}

const bounded = (shown: number): number => Math.min(255, Math.max(0, Math.round(shown)));

/** RGBA pixels of a picture under a window. */
export function windowed(values: Values, window: Window): ImageData {
  const { columns, rows, numbers, low, step, inverted, overlay } = values;
  const image = new ImageData(columns, rows);
  const pixels = new Uint32Array(image.data.buffer);
  const colours = new Uint32Array(65536);
  for (let i = 0; i < colours.length; i++) {
    const shown = grey(low + i * step, window, values.function);
    const level = inverted ? 255 - shown : shown;
    // Little-endian, as every browser's machine is: alpha, blue, green, red.
    colours[i] = (0xff000000 | (level << 16) | (level << 8) | level) >>> 0;
  }
  for (let i = 0; i < pixels.length; i++) pixels[i] = overlay?.[i] ? WHITE : (colours[numbers[i] ?? 0] ?? 0);
  return image;
}

const WHITE = 0xffffffff;

/** The least width that shows anything. */
export const leastWidth = ({ function: rule, step }: Values): number => (rule === "LINEAR" ? 1 : step);

/** The window after a drag by some pixels: right widens, down darkens. A narrow one moves slowly. */
export function dragged(start: Window, dx: number, dy: number, values: Values): Window {
  const { range, step } = values;
  const unit = Math.max(Math.min((range[1] - range[0]) / 600, start.width / 200), step);
  const round = (value: number): number => (step < 1 ? Number(value.toPrecision(4)) : Math.round(value));
  return { level: round(start.level + dy * unit), width: Math.max(leastWidth(values), round(start.width + dx * unit)) };
}

/** A zoomed picture: scale 1 fits; x and y move it, as shares of the frame. */
export interface Zoom {
  scale: number;
  x: number;
  y: number;
}

export const FITS: Zoom = { scale: 1, x: 0, y: 0 };
export const MOST_ZOOM = 16;

/** Zoomed by a factor about a point of the frame (shares, 0 to 1), which stays where it is. */
export function zoomed(zoom: Zoom, factor: number, atX = 0.5, atY = 0.5): Zoom {
  const scale = Math.min(MOST_ZOOM, Math.max(1, zoom.scale * factor));
  const change = scale / zoom.scale;
  return inside({ scale, x: atX - (atX - zoom.x) * change, y: atY - (atY - zoom.y) * change });
}

/** Moved by shares of the frame; the picture goes on covering it. */
export const moved = (zoom: Zoom, dx: number, dy: number): Zoom => inside({ ...zoom, x: zoom.x + dx, y: zoom.y + dy });

function inside({ scale, x, y }: Zoom): Zoom {
  const kept = (at: number): number => Math.min(0, Math.max(1 - scale, at)) || 0;
  return { scale, x: kept(x), y: kept(y) };
}
