"""Position Interpolation: fine-tune a model to several times its context window (arXiv 2306.15595).

    settings = FinetuneSettings(factor=4, sequence_length=2048, position_skipping=True, steps=400)
    finetune("path/to/checkpoint", ["books/emma.txt", "questions.jsonl"], "adapter", settings)

    settings.py            FinetuneSettings: all hyperparameters
    finetune.py            finetune(): checks, loads, trains and writes the result
    dataset.py             text files -> training sequences: tokenization and packing
    position_skipping.py   the position ids of a sequence: contiguous, or PoSE
    trained_model.py       the checkpoint with interpolated positions, LoRA or full
    loss.py                cross entropy with the logits of one chunk of tokens in memory
    training.py            the training loop: optimizer, schedule, held-out loss
    training_state.py      the state on disk from which an interrupted run resumes
    training_log.py        the metrics of a step

transformers does the forward pass and peft the LoRA; both are in the extra `pigguf[finetune]`.
"""
