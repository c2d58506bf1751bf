"""Operations on model files, a module or package for each command.

convert.py         a checkpoint to a GGUF
quantize.py        a float GGUF to another type
export.py          a GGUF to a checkpoint
imatrix.py         an importance matrix of a GGUF
inspect.py         what a GGUF contains
diff.py            how two GGUFs differ
lint/              faults in a GGUF's position keys
repair/            a GGUF with other keys
verify/            whether a GGUF is the same model as a checkpoint
doctor.py          whether this machine can run a model
readback.py        convert's and quantize's check of the file they wrote
rope_from_gguf.py  a GGUF's positions, with its rope tensors
"""
