"""Texts that prove a conversion: the source's tokenizer and the GGUF's must make the same tokens of them.

Left out: texts on which the two are known to differ (Limit), and names of special tokens of other
vocabularies, which llama.cpp may read as its own ("</s>").
"""

from __future__ import annotations

from itertools import pairwise

from pigguf.tokenizer.byte_alphabet import text_of
from pigguf.tokenizer.known_differences import Limit, kept_clear
from pigguf.tokenizer.vocab import ENDS_AS_FILLER, ENDS_BY_TEXT, MATCHED_IN_TEXT, TokenType, Vocab

MAX_SPECIAL_TOKENS = 64
MAX_PLAIN_TOKENS = 2000
PLAIN_TOKENS_PER_TEXT = 25

SAMPLES: tuple[str, ...] = (
    # Prose, with contractions in both cases and both apostrophes.
    "The quick brown fox jumps over the lazy dog.",
    "It's what they'd said: we'll see, I'm sure you've heard — don't, can't, she'S, WE'RE, I'LL, 'tis.",
    "It’s “quoted”, it’s ‘nested’… and it—well—ends.",
    "Hello, World! HELLO WORLD? hello world; HelloWorld helloWorld HTMLParser snake_case_name",
    # White space: runs, mixed, at the ends.
    " leading", "  two leading", "trailing ", "trailing  ", "a b  c   d    e     f      g",
    "\t", "\n", "\n\n", "\r\n", "\r\n\r\n \n\n\n", " \n", "\n ", " \t\n\r", "a\tb\t\tc", "a\nb\n\nc\n\n\nd",
    "line one\r\nline two\r\n\r\nline four\r", "   \n   indented\n\t\ttabbed\n", "   ", " " * 37,
    "x" + " " * 16 + "y",
    "no\u00a0break\u2003em\u2009thin\u3000ideographic\u2028line\u2029paragraph\u0085next",
    "full\u3000 \u3000width　中文　空格 \u00a0\u3000混合",
    # Digits of all lengths, and numbers of many kinds.
    "1 12 123 1234 12345 123456 1234567 12345678 123456789 1234567890",
    "3.14159 -273.15 1,000,000.00 0x1F 0b1010 1e-9 50% $9.99 №5 ½ ² Ⅻ ٣٤٥ १२३ ๔๕ 一二三",
    "2024-02-29T23:59:59Z 192.168.0.1 +1 (555) 010-9999",
    # Code and markup.
    "def f(x: int) -> list[str]:\n    return [str(i) for i in range(x)]  # comment\n",
    "#include <stdio.h>\nint main(void) {\n\tprintf(\"%d\\n\", 1 << 3);\n\treturn 0;\n}\n",
    "for (let i = 0; i < n; ++i) { a[i] ??= b?.[i] ?? `${c}`; } // =>",
    "SELECT * FROM t WHERE a <> 'x''y' AND b >= 1; -- done",
    '{"key": [1, 2.5, null, true], "nested": {"a": "\\u00e9\\n"}}',
    "<div class=\"a b\"><p>text &amp; more</p></div> <!-- end -->",
    "$E = mc^2$, \\frac{a}{b} \\sum_{i=0}^{n} x_i ≤ ∞ ∀x∈ℝ",
    "https://example.org/path/to?q=a%20b&x=1#frag user.name+tag@example.co.uk C:\\Users\\me /usr/local/bin",
    "!!!??? ... --- *** ### ((())) [[]] {{}} <<>> ;;;; ,,,, :::: ''' \"\"\" ``` ~~~ ___ === +++ ||| \\\\\\",
    # Scripts.
    "Żółć, naïve façade, Übergröße, Ærøskøbing, İstanbul, ığdır, Đorđević, œuvre, ſtraße, ﬁn ﬂow",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. ПРИВЕТ приветМир",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. ΑΒΓ",
    "我喜欢人工智能。今天天气很好，我们去公园散步吧！１２３ＡＢＣ",
    "日本語のテキスト、カタカナとひらがな。「引用」ｶﾅ 東京は夜の7時",
    "한국어 문장입니다. 안녕하세요? ㅋㅋㅋ",
    "السلام عليكم، كيف حالك؟ العَرَبِيَّةُ ١٢٣",
    "שלום עולם, מה שלומך? בְּרֵאשִׁית",
    "नमस्ते दुनिया, यह हिन्दी है। क्षत्रिय",
    "বাংলা ভাষা তামিழ் தமிழ் తెలుగు ಕನ್ನಡ മലയാളം ગુજરાતી ਪੰਜਾਬੀ",
    "สวัสดีชาวโลก ภาษาไทยไม่มีช่องว่าง ກະລຸນາ ភាសាខ្មែរ မြန်မာ བོད་ཡིག",
    "Հայերեն ქართული አማርኛ ᏣᎳᎩ ᐃᓄᒃᑎᑐᑦ ⴰⵎⴰⵣⵉⵖ 𐌰𐌱𐌲 𒀀𒁀",
    # Marks: composed and decomposed, stacked, and without a base.
    "café cafe\u0301 Å A\u030a ﬃ ệ e\u0323\u0302 q\u0307\u0323 Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢ \u0301x",
    # Emoji: joined, with skin tones, flags, keycaps, variation selectors, tags.
    "🙂 😀😃 👍\U0001f3fd 👩\u200d👩\u200d👧\u200d👦 🧑\U0001f3ff\u200d🚀 🏳\ufe0f\u200d🌈 🇩🇪🇫🇷",
    "1\ufe0f\u20e3 #\ufe0f\u20e3 ❤\ufe0f ❤ ☺\ufe0e",
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f 🫠",
    # Things that are hardly text: controls, replacement, order marks, private use, noncharacters.
    "a\x00b\x07c\x1bd\x7fe", "\ufeffmark\u200b\u200c\u200d\u2060zero\u00adsoft\u202ertl\u202c\ufffd\ufffd",
    "\ue000\uf8ff\U000f0000 \ufffe\U0001ffff \u0378",
    # What looks like pieces of a vocabulary.
    "▁ ▁▁ a▁b Ġ Ċ ĉ <0x0A> <0x41> <0xff> [UNK] <unk <|x|> <|im_ [INST] [PAD7] ##ing @@",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa hahahahahahahahaha abababababab -----------------------------------",
    "a",
    "",
)  # fmt: skip
"""Multilingual texts that hold no special token."""


def roundtrip_samples(vocab: Vocab) -> tuple[str, ...]:
    """The texts that a conversion of this vocabulary is proven with: SAMPLES, and of its own tokens.

    Special tokens come alone, in pairs, and with text before and after them.
    """
    texts = (*SAMPLES, *_special_samples(vocab), *_vocabulary_samples(vocab))
    return kept_clear(texts, vocab.limits)


def _special_samples(vocab: Vocab) -> tuple[str, ...]:
    special = _special_texts(vocab)
    texts = [*special, *(f"Some text{text}" for text in special)]
    texts += [left + right for left, right in pairwise(special)]
    if Limit.SPACE_PREFIX not in vocab.limits:
        texts += [f"{text}Some text" for text in special]
        texts += [f"{text}\nuser: 12 {text} {text}\n\n中文{text}" for text in special]
    return tuple(texts)


def _vocabulary_samples(vocab: Vocab) -> tuple[str, ...]:
    """Plain tokens from all over a byte-level vocabulary, one after the other: words of its own languages."""
    if vocab.model != "gpt2":
        return ()
    plain = [
        token
        for token, kind in zip(vocab.tokens, vocab.types, strict=True)
        if kind is TokenType.NORMAL and token not in ENDS_BY_TEXT | ENDS_AS_FILLER
    ]
    some = plain[:: max(1, len(plain) // MAX_PLAIN_TOKENS)]
    texts = [text for token in some if (text := text_of(token)) is not None]
    return tuple(
        "".join(texts[at : at + PLAIN_TOKENS_PER_TEXT]) for at in range(0, len(texts), PLAIN_TOKENS_PER_TEXT)
    )


def _special_texts(vocab: Vocab) -> list[str]:
    """Those in a role first, then the others in the order of their ids."""
    matched = [token for token, kind in enumerate(vocab.types) if kind in MATCHED_IN_TEXT]
    in_role = [token for token in vocab.special_ids.values() if vocab.types[token] in MATCHED_IN_TEXT]
    return [vocab.tokens[token] for token in dict.fromkeys([*in_role, *matched])][:MAX_SPECIAL_TOKENS]
