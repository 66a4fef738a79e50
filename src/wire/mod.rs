//! Reserved: see DESIGN §3.
