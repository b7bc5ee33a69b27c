// What the page says to the endpoint and what comes back. Addresses are relative to the page.

import { dataOf } from "./sse";
import type { WindowFunction } from "./window";

export interface Sampler {
  preset: string;
  gen_length: number;
  block_length: number;
  steps: number;
  temperature: number;
}

export interface Limits {
  max_body_bytes: number;
  max_gen_length: number;
  max_steps: number;
}

export interface Model {
  id: string;
  medv: { sampler: Sampler; limits: Limits; presets: string[] };
}

export type Part =
  | { type: "text"; text: string }
  | { type: "image_url"; image_url: { url: string } };

export interface Message {
  role: "user" | "assistant";
  content: string | Part[];
}

export interface Question {
  model: string;
  messages: Message[];
  temperature?: number;
  seed?: number;
  diffusion?: Partial<Omit<Sampler, "temperature">> & Form;
}

/** The form of an answer: one of these. */
export interface Form {
  choices?: string[];
  canvas?: string;
  json_schema?: unknown;
}

export interface Committed {
  position: number;
  token: string;
  token_id: number;
  confidence: number;
  /** Given by the form, and not by the model. */
  pinned?: boolean;
}

/** Where a blank of a form stands: positions from `start` to before `stop`. */
export interface Place {
  name: string;
  start: number;
  stop: number;
}

export interface DenoiseEvent {
  index: number;
  step: number;
  length: number;
  committed: Committed[];
  /** Of an answer in a form, in the first event. */
  blanks?: Place[];
}

/** What a blank has come to. */
export interface Blank {
  name: string;
  value: unknown;
  confidence: number;
  /** Of a choice. */
  probabilities?: Record<string, number>;
}

export interface Summary {
  confidence: number;
  forward_passes: number;
  seed: number;
  warnings: string[];
  blanks?: Blank[];
  /** Given positions that the answer does without. */
  left_out?: number[];
}

export interface Chunk {
  choices?: { index: number; delta?: { content?: string }; finish_reason?: string | null; medv?: Summary }[];
  denoise?: DenoiseEvent;
  medv?: Summary;
}

export interface Attention {
  image: number;
  rows: number;
  columns: number;
  box: [number, number, number, number];
  weights: number[][];
}

export interface Inspection {
  position: number;
  alternatives: { token: string; token_id: number; probability: number }[];
  attention: Attention[];
}

/** A picture as the endpoint reads it. */
export interface Reading {
  width: number;
  height: number;
  /** From 1. */
  frame: number;
  frames: number;
  warnings: string[];
  /** How many times smaller than the file's the sides of what follows are. */
  reduced: number;
  /** As it is decoded: a data: address of a PNG. */
  picture: string;
  values: {
    columns: number;
    rows: number;
    /** base64 of a zlib stream of little-endian 16-bit numbers, row by row. */
    data: string;
    /** The same of bytes: 1 where the file draws white over every window. Null where it draws nothing. */
    overlay: string | null;
    low: number;
    step: number;
    inverted: boolean;
    unit: string;
    /** Level and width; the whole range where the file's own look is no window. */
    window: [number, number];
    function: WindowFunction;
    /** Lowest and highest value, without padding. */
    range: [number, number];
    presets: Record<string, [number, number]>;
  } | null;
  /** The whole in one tile, then the grid's, row by row. */
  tiles: { side: number; columns: number; rows: number; pictures: string[] };
}

/** The endpoint said no. `retryAfter` is in seconds, null when it gave none. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly retryAfter: number | null = null,
    /** The field that it is about; empty where the endpoint names none. */
    readonly param = "",
  ) {
    super(message);
  }
}

/** The endpoint was not reached, or the connection ended before the answer did. */
export class NetworkError extends Error {}

const KEY = "medv_api_key";

// sessionStorage: the key is gone with the tab.
export const apiKey = {
  get: (): string => sessionStorage.getItem(KEY) ?? "",
  set: (key: string): void => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY)),
};

export const address = (path: string): string => new URL(path, document.baseURI).href;

async function call(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers({ "Content-Type": "application/json" });
  const key = apiKey.get();
  if (key) headers.set("Authorization", `Bearer ${key}`);
  let response: Response;
  try {
    response = await fetch(address(path), { ...init, headers, cache: "no-store" });
  } catch (error) {
    throw reason(error, "The endpoint cannot be reached. Is it running, and is the network up?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** An abort stays what it is; everything else that fetch throws is the network. */
function reason(error: unknown, message: string): unknown {
  return error instanceof DOMException && error.name === "AbortError" ? error : new NetworkError(message);
}

async function refusal(response: Response): Promise<ApiError> {
  const wait = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  const retryAfter = Number.isFinite(wait) ? Math.max(0, wait) : null;
  const body: unknown = await response.json().catch(() => null);
  return errorOf(body, response.status, retryAfter);
}

function errorOf(body: unknown, status: number, retryAfter: number | null = null): ApiError {
  const error = (body as { error?: { message?: string; code?: string | null; param?: string | null } } | null)?.error;
  const message = error?.message ?? OTHERS[status] ?? `The endpoint answered with HTTP status ${status}.`;
  return new ApiError(status, error?.code ?? `HTTP ${status}`, message, retryAfter, error?.param ?? "");
}

const AWAY = "A server in front of the endpoint does not reach it now.";
/** What has no error of the endpoint comes from a proxy before it. */
const OTHERS: Record<number, string> = {
  413: "A server in front of the endpoint takes no request of this size. A smaller picture may pass.",
  429: "A server in front of the endpoint asks for patience.",
  502: AWAY,
  503: AWAY,
  504: "A server in front of the endpoint waited too long for it.",
};

async function json<T>(path: string, init?: RequestInit): Promise<T> {
  const response = await call(path, init);
  try {
    return (await response.json()) as T;
  } catch (error) {
    throw reason(error, "The endpoint's answer did not arrive whole.");
  }
}

export const version = async (): Promise<string> => (await json<{ version: string }>("version")).version;

export const models = async (): Promise<Model[]> => (await json<{ data: Model[] }>("v1/models")).data;

/** What stands at `position` of a state of the answer to `question`; `tokens` as in the API. */
export function inspect(
  { model, messages, diffusion }: Question,
  state: { tokens: (number | null)[]; position: number },
  signal: AbortSignal,
): Promise<Inspection> {
  const body = JSON.stringify({ model, messages, diffusion, ...state });
  return json("v1/inspect", { method: "POST", body, signal });
}

/** `frame`: from 1; 0 leaves it to the endpoint. */
export function read(model: string, url: string, frame: number): Promise<Reading> {
  const body = JSON.stringify({ model, image_url: { url }, ...(frame > 0 && { frame }) });
  return json("v1/picture", { method: "POST", body });
}

/** Chunks until `[DONE]`. Throws NetworkError when the stream ends before it. */
export async function* chat(body: string, signal: AbortSignal): AsyncGenerator<Chunk> {
  const response = await call("v1/chat/completions", { method: "POST", body, signal });
  const cut = "The connection was lost before the answer was finished.";
  try {
    for await (const data of dataOf(response)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data) as Chunk & { error?: unknown };
      if (chunk.error) throw errorOf(chunk, response.status);
      yield chunk;
    }
  } catch (error) {
    throw error instanceof ApiError ? error : reason(error, cut);
  }
  throw new NetworkError(cut);
}
