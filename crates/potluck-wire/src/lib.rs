//! Frames, codecs and their bounds: encode and decode only.
