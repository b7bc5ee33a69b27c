/** To where the next thing is done, when what had the focus is gone. */
export function toQuestion(): void {
  // On a phone this would open the keyboard over the picture.
  if (matchMedia("(hover: hover)").matches)
    document.getElementById("question")?.focus({ preventScroll: true });
}
