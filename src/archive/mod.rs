//! Reserved: see docs/ARCHITECTURE.md, "Modules".
