//! Texts for messages.

use iii_proto::control::MAX_TEXT;

/// Cuts a text to what one message may carry.
pub(crate) fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
    }
    text
}
