// The words of `warnings` (docs/images.md) as sentences: one for each that an answer of the endpoint may have.

const SENTENCES: Record<string, string> = {
  bilevel: "The picture has one bit a pixel: black and white only.",
  palette: "The picture's palette was turned into colours.",
  alpha_composited: "Transparent parts were laid over a plain background.",
  alpha_opaque: "The picture has a transparency channel that hides nothing.",
  cmyk: "CMYK was converted to RGB without a colour profile.",
  ycbcr: "YCbCr was converted to RGB.",
  grey16_scaled: "16-bit grey was scaled over its range",
  grey32_scaled: "32-bit grey was scaled over its range",
  float_scaled: "Float values were scaled over their range",
  colour16_scaled: "Colours of 16 bits were scaled over their range",
  colour32_scaled: "Colours of 32 bits were scaled over their range",
  colour8_scaled: "Colours of fewer than 8 bits were scaled over their range",
  palette16_scaled: "A palette of 16 bits was scaled over its range",
  palette8: "The values of a 16-bit palette were taken as 8 bits.",
  palette16: "The palette holds more than its bits; its values were taken as 16 bits.",
  extra_channels_dropped: "Extra channels of the picture were left out.",
  transparency_ignored: "The picture's transparency was left out.",
  alpha_ignored: "The picture's fourth channel is 0 everywhere and was left out.",
  exif_transposed: "The picture was turned upright as its EXIF data say.",
  exif_unreadable: "The EXIF data cannot be read; the picture is taken as stored.",
  dicom_window: "The window of the file's number, level and width was applied",
  dicom_voi_lut: "The file's own lookup table was applied",
  dicom_range: "The file tells no window; black and white are its lowest and highest value",
  rescale_incomplete: "The file's rescaling lacks its slope or its intercept and was not applied.",
  modality_lut: "The file's table of modality values was applied.",
  monochrome1_inverted: "Black and white were exchanged, as the file's MONOCHROME1 asks.",
  presentation_identity: "Black and white were not exchanged: the file's presentation overrules MONOCHROME1.",
  presentation_inverted: "Black and white were exchanged, as the file's presentation asks.",
  window_unset: "The file's window has no width; it was taken as none.",
  window_not_applied: "This window does not fit the file and was not applied",
  overlays_drawn: "Overlays of the file were drawn into the picture. Overlays",
  overlays_ignored: "Overlays of the file were left out.",
  supplemental_palette_ignored: "The file's extra palette was left out.",
  burned_in_annotation: "Annotation is burned into the pixels.",
  burned_in_unknown: "The file does not say whether annotation is burned into the pixels.",
  number_of_frames_read_as: "The number of frames is written wrongly and was read as",
  high_bit_read_as: "The highest bit is written wrongly and was read as",
  colours_by_jpeg_markers: "The JPEG names other colours than the file's header; the JPEG was followed.",
  transfer_syntax_assumed: "The file does not tell its transfer syntax; a usual one was assumed.",
  executable_preamble: "The file begins like a program. It was read as a picture all the same.",
  frame: "This frame of the file was used",
  pages_left_out: "Pages that are copies or masks of others were left out. Pages",
  thumbnail_page_skipped: "The file's first page is a thumbnail and was left out.",
  mask_page_skipped: "The file's first page is a mask and was left out.",
  page_list_broken: "The file's list of pages breaks off.",
  frame_list_broken: "The file breaks off; it may have held more frames.",
  first_of_frames: "The file holds several frames; the first one was used. Frames",
  trailing_bytes: "There are bytes behind the end of the picture; they were left out.",
  scans_missing: "The JPEG lacks its last scans and is coarser than it was.",
  suspect_flat_tail: "The end of the JPEG looks wiped. Look at the picture before you trust the answer.",
  slide_thumbnail: "The slide was read as a whole, made smaller. Its scan",
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
