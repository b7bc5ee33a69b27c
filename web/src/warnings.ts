// The catalogue of words in `warnings` (docs/images.md), as sentences.

const SENTENCES: Record<string, string> = {
  bilevel: "The picture has one bit a pixel: black and white only.",
  palette: "The picture's palette was turned into colours.",
  alpha_composited: "Transparent parts were laid over a plain background.",
  alpha_opaque: "The picture has a transparency channel that hides nothing.",
  cmyk: "CMYK was converted to RGB without a colour profile.",
  ycbcr: "YCbCr was converted to RGB.",
  grey16_scaled: "16-bit grey was scaled from its lowest to its highest value",
  grey32_scaled: "32-bit grey was scaled from its lowest to its highest value",
  float_scaled: "Float values were scaled from lowest to highest",
  depth_reduced: "16 bits a channel were reduced to 8.",
  colour16_scaled: "Colours of 16 bits were scaled from their lowest to their highest value",
  palette16_scaled: "A palette of 16 bits was scaled from its lowest to its highest value",
  palette8: "The values of a 16-bit palette were taken as 8 bits.",
  extra_channels_dropped: "Extra channels of the picture were left out.",
  transparency_ignored: "The picture's transparency was left out.",
  alpha_ignored: "The picture's fourth channel is 0 everywhere and was left out.",
  exif_transposed: "The picture was turned upright as its EXIF data say.",
  exif_unreadable: "The EXIF data cannot be read; the picture is taken as stored.",
  first_of_frames: "The file holds several frames; the first one was used. Frames",
  trailing_bytes: "There are bytes behind the end of the picture; they were left out.",
  scans_missing: "The JPEG lacks its last scans and is coarser than it was.",
  suspect_flat_tail: "The end of the JPEG looks wiped. Look at the picture before you trust the answer.",
  image_mark: "The mark of an image in the question was left out.",
  image_name_case: "The picture was found under a name that differs in case.",
  id_missing: "The row has no id and was given one.",
  images_moved: "Pictures of later turns stand in front of the first one. Pictures",
};

export function sentence(word: string): string {
  const [name = "", value = ""] = word.split(/:(.*)/s);
  const known = SENTENCES[name];
  // Sentences without a full stop end in the word's own value.
  if (known) return known.endsWith(".") ? known : `${known}: ${value.replace(",", ", ")}.`;
  // Another word, or a sentence already: shown as it came.
  return word;
}
