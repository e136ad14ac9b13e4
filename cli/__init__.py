"""What a person types: parse, call one function of the engine, render or print JSON."""
