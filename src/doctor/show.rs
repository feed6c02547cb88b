//! Shows a diagnosis.
