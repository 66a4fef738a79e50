//! The record for people: terminal, JSON, one self-contained HTML page.
