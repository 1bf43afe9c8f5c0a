"""Sans-IO wire format: greenpack messages, framing and codecs."""
