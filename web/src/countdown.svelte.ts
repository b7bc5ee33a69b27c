// Whole seconds until something is done, for the eyes of somebody who waits.

export class Countdown {
  /** 0 while nothing is waited for. */
  left = $state(0);
  #timer: ReturnType<typeof setInterval> | undefined;

  start(seconds: number, then: () => void): void {
    this.stop();
    this.left = Math.max(1, Math.ceil(seconds));
    this.#timer = setInterval(() => {
      this.left -= 1;
      if (this.left > 0) return;
      this.stop();
      then();
    }, 1000);
  }

  stop(): void {
    clearInterval(this.#timer);
    this.left = 0;
  }
}
