//! The whole-system tests and their parts.
