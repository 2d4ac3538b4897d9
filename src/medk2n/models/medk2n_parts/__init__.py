"""The parts of Med-K2N (design of the method: encoder, fusion networks, decoder, heads)."""
