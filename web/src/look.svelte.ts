// How a file is looked at: which frame, under which window. What is shown is what the model is given.

import { read, type Reading } from "./api";
import { withKey } from "./key.svelte";
import type { Values, Window } from "./window";
import { windowed } from "./window";

/** What goes to the model. */
export interface Given {
  file: Promise<Blob>;
  /** In words, where it is not the file as it came. */
  about: string;
}

const KEPT_FRAMES = 8;

export class Look {
  reading = $state.raw<Reading | null>(null);
  /** Null: as the endpoint renders it. */
  window = $state.raw<Window | null>(null);
  loading = $state(false);
  /** Why the endpoint does not read it. */
  problem = $state("");
  /** The frame that is wanted; the reading follows it. */
  frame = $state(0);
  /** What is to be painted; null while only the browser's own picture is there. */
  source = $state.raw<HTMLCanvasElement | null>(null);

  #values = $state.raw<Values | null>(null);
  /** As the endpoint renders it. */
  #plain: HTMLCanvasElement | null = null;
  #own = 0;
  #kept = new Map<number, Reading>();
  #asked = 0;

  constructor(
    readonly file: File,
    /** The address of the file for the endpoint. */
    readonly dataUrl: () => Promise<string>,
  ) {}

  get values(): Values | null {
    return this.#values;
  }

  /** What is shown is what the endpoint makes of the file by itself. */
  get isOwn(): boolean {
    return this.window === null && (this.reading?.frame ?? this.#own) === this.#own;
  }

  /** The window in force, as numbers; the endpoint's own where none was chosen. */
  get inForce(): Window | null {
    const own = this.reading?.values?.window ?? null;
    return this.window ?? (own && { level: own[0], width: own[1] });
  }

  /** Read the file as the endpoint does. `frame`: from 1; 0 is the endpoint's own choice. */
  async load(model: string, frame = 0): Promise<void> {
    const number = ++this.#asked;
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
      this.problem = "";
    } catch (error) {
      if (number === this.#asked) this.problem = error instanceof Error ? error.message : String(error);
    } finally {
      if (number === this.#asked) this.loading = false;
    }
  }

  show(window: Window | null): void {
    this.window = window;
    this.source = window && this.#values ? canvasOf(windowed(this.#values, window)) : this.#plain;
  }

  /** Everything of a frame at once: a question must not be asked about half of a change. */
  async #take(reading: Reading): Promise<void> {
    const number = this.#asked;
    const { values } = reading;
    const numbers = values && new Uint16Array(await inflated(values.data));
    const plain = await painted(reading.picture);
    if (number !== this.#asked) return;
    this.reading = reading;
    this.frame = reading.frame;
    this.#values = values && numbers && { ...values, numbers };
    this.#plain = plain;
    this.loading = false;
    this.show(this.window);
  }

  /** What is shown, as a file that any program opens. Null while nothing is. */
  png(): Promise<Blob> | null {
    const { source } = this;
    return (
      source &&
      new Promise<Blob>((resolve, reject) =>
        source.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The picture cannot be written."))), "image/png"),
      )
    );
  }

  /** What the next question gives the model. */
  given(): Given {
    const png = this.isOwn ? null : this.png();
    return png ? { file: png, about: this.words } : { file: Promise.resolve(this.file), about: "" };
  }

  get words(): string {
    if (this.isOwn) return "";
    const { reading, window, values } = this;
    const parts = [];
    if (reading && reading.frames > 1) parts.push(`frame ${reading.frame} of ${reading.frames}`);
    if (window) parts.push(`window ${window.level}/${window.width}${values?.unit ? ` ${values.unit}` : ""}`);
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
