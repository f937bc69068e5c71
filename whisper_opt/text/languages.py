"""The languages of Whisper, in the order of their tokens.

Codes, names and order are those of openai-whisper (whisper/tokenizer.py). Models before large-v3
have the first 99; Cantonese was added in large-v3.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from whisper_opt.core.errors import OptionError

__all__ = ["ALIASES", "CODES", "LANGUAGES", "LANGUAGE_CODES", "language_code"]

_log = logging.getLogger(__name__)

LANGUAGES: Mapping[str, str] = {
    "en": "english",
    "zh": "chinese",
    "de": "german",
    "es": "spanish",
    "ru": "russian",
    "ko": "korean",
    "fr": "french",
    "ja": "japanese",
    "pt": "portuguese",
    "tr": "turkish",
    "pl": "polish",
    "ca": "catalan",
    "nl": "dutch",
    "ar": "arabic",
    "sv": "swedish",
    "it": "italian",
    "id": "indonesian",
    "hi": "hindi",
    "fi": "finnish",
    "vi": "vietnamese",
    "he": "hebrew",
    "uk": "ukrainian",
    "el": "greek",
    "ms": "malay",
    "cs": "czech",
    "ro": "romanian",
    "da": "danish",
    "hu": "hungarian",
    "ta": "tamil",
    "no": "norwegian",
    "th": "thai",
    "ur": "urdu",
    "hr": "croatian",
    "bg": "bulgarian",
    "lt": "lithuanian",
    "la": "latin",
    "mi": "maori",
    "ml": "malayalam",
    "cy": "welsh",
    "sk": "slovak",
    "te": "telugu",
    "fa": "persian",
    "lv": "latvian",
    "bn": "bengali",
    "sr": "serbian",
    "az": "azerbaijani",
    "sl": "slovenian",
    "kn": "kannada",
    "et": "estonian",
    "mk": "macedonian",
    "br": "breton",
    "eu": "basque",
    "is": "icelandic",
    "hy": "armenian",
    "ne": "nepali",
    "mn": "mongolian",
    "bs": "bosnian",
    "kk": "kazakh",
    "sq": "albanian",
    "sw": "swahili",
    "gl": "galician",
    "mr": "marathi",
    "pa": "punjabi",
    "si": "sinhala",
    "km": "khmer",
    "sn": "shona",
    "yo": "yoruba",
    "so": "somali",
    "af": "afrikaans",
    "oc": "occitan",
    "ka": "georgian",
    "be": "belarusian",
    "tg": "tajik",
    "sd": "sindhi",
    "gu": "gujarati",
    "am": "amharic",
    "yi": "yiddish",
    "lo": "lao",
    "uz": "uzbek",
    "fo": "faroese",
    "ht": "haitian creole",
    "ps": "pashto",
    "tk": "turkmen",
    "nn": "nynorsk",
    "mt": "maltese",
    "sa": "sanskrit",
    "lb": "luxembourgish",
    "my": "myanmar",
    "bo": "tibetan",
    "tl": "tagalog",
    "mg": "malagasy",
    "as": "assamese",
    "tt": "tatar",
    "haw": "hawaiian",
    "ln": "lingala",
    "ha": "hausa",
    "ba": "bashkir",
    "jw": "javanese",
    "su": "sundanese",
    "yue": "cantonese",
}
"""Language code -> English name, in token order."""

ALIASES: Mapping[str, str] = {
    "burmese": "my",
    "valencian": "ca",
    "flemish": "nl",
    "haitian": "ht",
    "letzeburgesch": "lb",
    "pushto": "ps",
    "panjabi": "pa",
    "moldavian": "ro",
    "moldovan": "ro",
    "sinhalese": "si",
    "castilian": "es",
    "mandarin": "zh",
    "simplified chinese": "zh",
    "traditional chinese": "zh",
    "farsi": "fa",
    "dari": "fa",
    "filipino": "tl",
    "bokmål": "no",
    "bokmal": "no",
    "norwegian bokmål": "no",
    "norwegian nynorsk": "nn",
    "bangla": "bn",
    "cambodian": "km",
    "brazilian portuguese": "pt",
    "bahasa indonesia": "id",
    "bahasa melayu": "ms",
}
"""Other names -> language code."""

LANGUAGE_CODES: Mapping[str, str] = {
    **{name: code for code, name in LANGUAGES.items()},
    **ALIASES,
}
"""English name or other name, in lower case -> language code."""

_OTHER_CODES = """
    af afr  am amh  ar ara arb  as asm  az aze azj  ba bak  be bel  bg bul  bn ben  bo bod tib
    br bre  bs bos  ca cat  cs ces cze  cy cym wel  da dan  de deu ger  el ell gre  en eng  es spa
    et est ekk  eu eus baq  fa fas per pes prs  fi fin  fo fao  fr fra fre  gl glg  gu guj  ha hau
    he heb iw  hi hin  hr hrv scr  ht hat  hu hun  hy hye arm  id ind in  is isl ice  it ita
    ja jpn  jw jav jv  ka kat geo  kk kaz  km khm  kn kan  ko kor  la lat  lb ltz  ln lin  lo lao
    lt lit  lv lav lvs  mg mlg plt  mi mri mao  mk mkd mac  ml mal  mn mon khk  mr mar
    ms msa may zsm  mt mlt  my mya bur  ne nep npi  nl nld dut  nn nno  no nor nob nb  oc oci
    pa pan  pl pol  ps pus pbt  pt por  ro ron rum mol mo  ru rus  sa san  sd snd  si sin
    sk slk slo  sl slv  sn sna  so som  sq sqi alb als  sr srp scc  su sun  sv swe  sw swa swh
    ta tam  te tel  tg tgk  th tha  tk tuk  tl tgl fil  tr tur  tt tat  uk ukr  ur urd  uz uzb uzn
    vi vie  yi yid ydd ji  yo yor  zh zho chi cmn
"""


def _by_other_code() -> dict[str, str]:
    rows = (row.split() for row in re.split(r"\s{2,}", _OTHER_CODES.strip()))
    return {other: code for code, *others in rows for other in others}


CODES: Mapping[str, str] = _by_other_code()
"""Codes of ISO 639-2 and 639-3, and withdrawn codes of 639-1 -> language code."""


def language_code(language: str) -> str:
    """The code of a language, given as a code or an English name in upper or lower case.

    A tag such as ``pt-BR`` stands for its language.

    Raises:
        OptionError: not a language of Whisper; the message suggests similar names.
    """
    wanted = re.sub(r"\s*\(.*\)$", "", language.strip().lower())
    code = _known(wanted)
    if code is not None:
        return code
    tag = re.fullmatch(r"([a-z]{2,3})([-_][a-z0-9]{1,8})+", wanted)
    code = _known(tag.group(1)) if tag else None
    if code is not None:
        _log.info("language %r is read as %s (%s)", language, code, LANGUAGES[code])
        return code
    raise OptionError(f"unknown language {language!r}{_hint(wanted)}")


def _known(name: str) -> str | None:
    if name in LANGUAGES:
        return name
    return CODES.get(name) or LANGUAGE_CODES.get(name)


def _hint(wanted: str) -> str:
    import difflib

    # short words are similar to too many names
    names = list(LANGUAGE_CODES) if len(wanted) > 3 else []
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.7)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; known codes: {' '.join(LANGUAGES)}. Leave the language out to have it detected"
