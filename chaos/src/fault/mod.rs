//! The catalogue of faults, and how each is aimed, injected, proved and mended.
