// A file that the user gave: what the browser can show of it, and how it travels.

import { Look } from "./look.svelte";
import type { Turn } from "./turn.svelte";

export interface Picture {
  look: Look;
  file: File;
  name: string;
  /** Object address for <img>; null when the browser cannot show the format (DICOM, TIFF). */
  url: string | null;
  /** Width / height of what the browser shows; 1 when unknown. */
  aspect: number;
}

/** Width / height of what is shown. */
export const aspectOf = ({ look, aspect }: Picture): number =>
  look.reading ? look.reading.width / look.reading.height : aspect;

/** Endings, as in medv_ray/formats.py, which tests/unit/test_page_tables.py compares. A browser that
 *  does not know a type leaves it empty; the endpoint looks at the bytes anyway. */
const TYPES: Record<string, string> = {
  "image/jpeg": "jpg jpeg jpe jfif",
  "image/png": "png",
  "image/tiff": "tif tiff svs ndpi scn",
  "image/bmp": "bmp",
  "image/gif": "gif",
  "image/webp": "webp",
  "application/dicom": "dcm dicom dic ima",
  "image/jp2": "jp2 j2k jpx j2c",
  "image/avif": "avif",
  "image/heif": "heic heif",
};

export async function pictureOf(file: File): Promise<Picture> {
  const url = URL.createObjectURL(file);
  const image = new Image();
  image.src = url;
  const name = file.name || "pasted image";
  const made = (shown: boolean): Look => new Look(file, () => dataUrl(file), shown);
  try {
    await image.decode();
    return { look: made(true), file, name, url, aspect: image.naturalWidth / image.naturalHeight || 1 };
  } catch {
    URL.revokeObjectURL(url);
    return { look: made(false), file, name, url: null, aspect: 1 };
  }
}

export function forget(picture: Picture): void {
  if (picture.url) URL.revokeObjectURL(picture.url);
}

export function typeOf(file: File): string {
  const ending = file.name.split(".").pop()?.toLowerCase() ?? "";
  const [known] = Object.entries(TYPES).find(([, endings]) => endings.split(" ").includes(ending)) ?? [];
  return file.type || known || "application/octet-stream";
}

/** The file as a data: address, base64. Rejects when it can no longer be read (moved, deleted). */
export const dataUrl = (file: File): Promise<string> => blobUrl(file, typeOf(file), file.name);

/** Bytes as a data: address. */
export function blobUrl(blob: Blob, type = blob.type, name = "The picture"): Promise<string> {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onerror = () => reject(new Error(`${name} can no longer be read. Add it again.`));
    reader.onload = () => {
      const [, encoded = ""] = String(reader.result).split(",");
      resolve(`data:${type};base64,${encoded}`);
    };
    reader.readAsDataURL(blob);
  });
}

const QUESTION_ROOM = 16_384; // bytes of a request beside its image

/** Why this file cannot be sent, or null. Base64 makes 4 bytes of 3. */
export function tooLarge(file: File, max_body_bytes: number): string | null {
  if (Math.ceil(file.size / 3) * 4 + QUESTION_ROOM <= max_body_bytes) return null;
  const most = Math.floor((Math.max(0, max_body_bytes - QUESTION_ROOM) / 4) * 3);
  return `${file.name || "The image"} has ${bytes(file.size)}; this endpoint takes images up to ${bytes(most)}.`;
}

export function bytes(count: number): string {
  if (count < 1000) return `${count} bytes`;
  return count < 1e6 ? `${(count / 1e3).toFixed(0)} kB` : `${(count / 1e6).toFixed(1)} MB`;
}

/** What a turn was asked about, as the request has it. */
export async function givenUrl({ given }: Turn): Promise<string> {
  const file = await given.file;
  return file instanceof File ? dataUrl(file) : blobUrl(file);
}
