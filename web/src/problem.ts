// What went wrong, for the eyes of a user.

import { ApiError, NetworkError } from "./api";

export interface Problem {
  code: string;
  message: string;
  /** Asking again may help. */
  again: boolean;
  /** Seconds after which the endpoint wants to be asked again; null where it did not say. */
  wait: number | null;
}

/** What asking again does not change. */
export const noteOf = (message: string): Problem => ({ code: "", message, again: false, wait: null });

export function problemOf(error: unknown): Problem {
  const message = error instanceof Error ? error.message : String(error);
  if (error instanceof ApiError) {
    const { code, status, retryAfter } = error;
    // What is wrong with a request stays wrong; a stream (200) that ended in an error does not.
    const wrong = status >= 400 && status < 500 && ![401, 408, 429].includes(status);
    return { code, message, again: !wrong, wait: retryAfter };
  }
  return { code: error instanceof NetworkError ? "Network" : "", message, again: true, wait: null };
}
