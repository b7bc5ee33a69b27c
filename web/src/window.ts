// Window and level of 16-bit values, and zoom of a picture. Pure.

export interface Window {
  level: number;
  width: number;
}

/** Values of a picture: `low + step * number` for each of the numbers. */
export interface Values {
  columns: number;
  rows: number;
  numbers: Uint16Array;
  low: number;
  step: number;
  /** Black and white change places after the window. */
  inverted: boolean;
  /** `HU` or empty. */
  unit: string;
}

/** Grey of a value, 0 to 255: PS3.3 C.11.2.1.2 for whole numbers, which are steps; else the exact one. */
export function grey(value: number, { level, width }: Window, step: number): number {
  if (step < 1) return bounded(((value - level) / width + 0.5) * 255);
  if (width <= 1) return value <= level - 0.5 ? 0 : 255;
  return bounded(((value - (level - 0.5)) / (width - 1) + 0.5) * 255);
}

const bounded = (shown: number): number => Math.min(255, Math.max(0, Math.round(shown)));

/** RGBA pixels of a picture under a window. */
export function windowed({ columns, rows, numbers, low, step, inverted }: Values, window: Window): ImageData {
  const image = new ImageData(columns, rows);
  const pixels = new Uint32Array(image.data.buffer);
  const colours = new Uint32Array(65536);
  for (let i = 0; i < colours.length; i++) {
    const shown = grey(low + i * step, window, step);
    const level = inverted ? 255 - shown : shown;
    // Little-endian, as every browser's machine is: alpha, blue, green, red.
    colours[i] = (0xff000000 | (level << 16) | (level << 8) | level) >>> 0;
  }
  for (let i = 0; i < pixels.length; i++) pixels[i] = colours[numbers[i] ?? 0] ?? 0;
  return image;
}

/** The window after a drag by some pixels: right widens, down darkens. `range`: of the values. */
export function dragged(start: Window, dx: number, dy: number, range: number, step: number): Window {
  const least = step < 1 ? step : 1;
  const unit = Math.max(range / 600, step);
  const round = (value: number): number => (step < 1 ? Number(value.toPrecision(4)) : Math.round(value));
  return { level: round(start.level + dy * unit), width: Math.max(least, round(start.width + dx * unit)) };
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
