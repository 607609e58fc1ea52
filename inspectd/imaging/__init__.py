"""From a frame to the small grey picture that is judged, and back to one for the eye."""
