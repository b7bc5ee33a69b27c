// Asking for the API key when the endpoint says 401, once for all calls that wait for it.

import { ApiError, apiKey } from "./api";

class KeyAsker {
  open = $state(false);
  /** A key was sent and refused. */
  rejected = $state(false);
  held = $state(apiKey.get() !== "");
  #pending: Promise<boolean> | null = null;
  #settle: (given: boolean) => void = () => undefined;

  /** True once the user gave a key, false when they would not. */
  ask(): Promise<boolean> {
    this.rejected = apiKey.get() !== "";
    this.open = true;
    this.#pending ??= new Promise((resolve) => (this.#settle = resolve));
    return this.#pending;
  }

  give(key: string | null): void {
    if (key) this.#keep(key);
    this.open = false;
    this.#pending = null;
    this.#settle(Boolean(key));
  }

  forget(): void {
    this.#keep("");
  }

  #keep(key: string): void {
    apiKey.set(key);
    this.held = key !== "";
  }
}

export const keyAsker = new KeyAsker();

const unknownKey = (error: unknown): boolean => error instanceof ApiError && error.status === 401;

/** `call`, again with another key as long as the endpoint does not know it and the user gives one. */
export async function withKey<T>(call: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await call();
    } catch (error) {
      if (!unknownKey(error) || !(await keyAsker.ask())) throw error;
    }
  }
}
