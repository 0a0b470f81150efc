//! HTTP requests whose meaning must not be dropped, and callers that hold on to what they got.
