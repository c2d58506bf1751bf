"""Position Interpolation: fine-tuning a model to a window several times its own (arXiv 2306.15595).

    settings = FinetuneSettings(factor=4, sequence_length=2048, position_skipping=True, steps=400)
    finetune("path/to/checkpoint", ["books/emma.txt", "questions.jsonl"], "adapter", settings)

The steps, a module each: data (text -> sequences), positions (which places they stand at), model (the
checkpoint with its factor, and what of it is trained), loss, training (the loop), state (what survives
a kill), run (all of it, read top to bottom).

This is the only room that imports transformers and peft; it needs the extra `pigguf[finetune]`.
"""
