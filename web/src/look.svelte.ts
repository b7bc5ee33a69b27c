// How a file is looked at: which frame, under which window. What is shown is what the model is given.

import { read, type Reading } from "./api";
import { withKey } from "./key.svelte";
import { problemOf, type Problem } from "./problem";
import type { Values, Window } from "./window";
import { windowed } from "./window";

/** What goes to the model with a question, and how it was looked at then. */
export interface Given {
  file: Promise<Blob>;
  /** In words, where it is not the file as it came. */
  about: string;
  /** From 1; 0 while the endpoint has not read it. */
  frame: number;
  window: Window | null;
  /** As it is seen, for an export; null where only the file itself is there. */
  seen: Promise<Blob> | null;
}

const KEPT_FRAMES = 8;
const AUTOMATIC_RETRIES = 3;

export class Look {
  reading = $state.raw<Reading | null>(null);
  /** Null: as the endpoint renders it. */
  window = $state.raw<Window | null>(null);
  loading = $state(false);
  /** Why the endpoint does not read it. */
  problem = $state.raw<Problem | null>(null);
  /** The frame that is wanted; the reading follows it. */
  frame = $state(0);
  /** What is to be painted; null while only the browser's own picture is there. */
  source = $state.raw<HTMLCanvasElement | null>(null);

  #values = $state.raw<Values | null>(null);
  /** As the endpoint renders it. */
  #plain: HTMLCanvasElement | null = null;
  #own = 0;
  #model = "";
  #kept = new Map<number, Reading>();
  #asked = 0;
  #retries = 0;
  /** The source that was written last, as a file. */
  #png: { source: HTMLCanvasElement; file: Promise<Blob> } | null = null;

  constructor(
    readonly file: File,
    /** The address of the file for the endpoint. */
    readonly dataUrl: () => Promise<string>,
    /** The browser shows it by itself. */
    readonly shown: boolean,
  ) {}

  get values(): Values | null {
    return this.#values;
  }

  /** What is shown is what the endpoint makes of the file by itself. */
  get isOwn(): boolean {
    return this.window === null && (this.reading?.frame ?? this.#own) === this.#own;
  }

  /** The browser's rendering of the file is the picture that the endpoint makes of it. */
  get isNative(): boolean {
    const { reading } = this;
    const same = !reading || (reading.frames === 1 && !reading.values && reading.warnings.length === 0);
    return this.shown && this.isOwn && same;
  }

  /** The window in force, as numbers; the endpoint's own where none was chosen. */
  get inForce(): Window | null {
    const own = this.reading?.values?.window ?? null;
    return this.window ?? (own && { level: own[0], width: own[1] });
  }

  /** Read the file as the endpoint does. `frame`: from 1; 0 is the endpoint's own choice. */
  async load(model: string, frame = 0, automatic = false): Promise<void> {
    const number = ++this.#asked;
    if (!automatic) this.#retries = 0;
    // Another model may have other tiles.
    if (model !== this.#model) this.#kept.clear();
    this.#model = model;
    this.frame = frame || this.frame;
    const kept = this.#kept.get(frame);
    if (kept) return this.#take(kept);
    this.loading = true;
    try {
      const url = await this.dataUrl();
      const reading = await withKey(() => read(model, url, frame));
      if (number !== this.#asked) return;
      if (frame === 0) this.#own = reading.frame;
      this.#kept.set(reading.frame, reading);
      for (const old of this.#kept.keys()) if (this.#kept.size > KEPT_FRAMES) this.#kept.delete(old);
      await this.#take(reading);
      this.problem = null;
    } catch (error) {
      if (number === this.#asked) this.#fail(problemOf(error), model, frame);
    } finally {
      if (number === this.#asked) this.loading = false;
    }
  }

  #fail(problem: Problem, model: string, frame: number): void {
    const wait = this.#retries < AUTOMATIC_RETRIES ? problem.wait : null;
    this.problem = { ...problem, wait };
    // A frame that did not come is not the one that is seen.
    this.frame = this.reading?.frame ?? 0;
    if (wait === null) return;
    this.#retries += 1;
    const number = this.#asked;
    setTimeout(() => number === this.#asked && void this.load(model, frame, true), Math.max(1, wait) * 1000);
  }

  show(window: Window | null): void {
    this.window = window;
    this.source = window && this.#values ? canvasOf(windowed(this.#values, window)) : this.#plain;
  }

  /** As it was looked at for an earlier question. */
  showAgain({ frame, window }: Given): void {
    this.show(window);
    if (frame > 0 && frame !== this.reading?.frame) void this.load(this.#model, frame);
  }

  /** Everything of a frame at once: a question must not be asked about half of a change. */
  async #take(reading: Reading): Promise<void> {
    const number = this.#asked;
    const { values } = reading;
    const numbers = values && new Uint16Array(await inflated(values.data));
    const overlay = values?.overlay ? new Uint8Array(await inflated(values.overlay)) : null;
    const plain = await painted(reading.picture);
    if (number !== this.#asked) return;
    this.reading = reading;
    this.frame = reading.frame;
    this.#values = values && numbers && { ...values, numbers, overlay };
    this.#plain = plain;
    this.loading = false;
    this.show(this.window);
  }

  /** What is shown, as a file that any program opens. Null while nothing is. */
  png(): Promise<Blob> | null {
    const { source } = this;
    if (source && this.#png?.source !== source) this.#png = { source, file: written(source) };
    return source && (this.#png?.file ?? null);
  }

  /** What the next question gives the model. */
  given(): Given {
    const { window, reading } = this;
    const seen = this.isNative ? null : this.png();
    const how = { frame: reading?.frame ?? 0, window, seen };
    if (this.isOwn || !seen) return { file: Promise.resolve(this.file), about: "", ...how };
    return { file: seen, about: this.words, ...how };
  }

  get words(): string {
    if (this.isOwn) return "";
    const { reading, window, values } = this;
    const parts = [];
    if (reading && reading.frames > 1) parts.push(`frame ${reading.frame} of ${reading.frames}`);
    if (window) {
      const rule = values && values.function !== "LINEAR" ? ` ${values.function.toLowerCase().replace("_", " ")}` : "";
      parts.push(`window ${window.level}/${window.width}${values?.unit ? ` ${values.unit}` : ""}${rule}`);
    }
    if (reading && reading.reduced > 1) parts.push(`reduced ${reading.reduced} times`);
    return parts.join(", ");
  }
}

function canvasOf(pixels: ImageData): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  canvas.width = pixels.width;
  canvas.height = pixels.height;
  canvas.getContext("2d", { alpha: false })?.putImageData(pixels, 0, 0);
  return canvas;
}

const written = (canvas: HTMLCanvasElement): Promise<Blob> =>
  new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The picture cannot be written."))), "image/png"),
  );

async function painted(address: string): Promise<HTMLCanvasElement> {
  const image = new Image();
  image.src = address;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  canvas.getContext("2d", { alpha: false })?.drawImage(image, 0, 0);
  return canvas;
}

/** Bytes of a base64 text that holds a zlib stream. */
async function inflated(encoded: string): Promise<ArrayBuffer> {
  const bytes = Uint8Array.from(atob(encoded), (mark) => mark.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}
