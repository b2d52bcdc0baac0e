"""In which script a text is written, and whether an answer's is one that its prompt asks for.

A prompt asks for its own script, for one that it holds ("What does \u732b mean?") and for that of a language that it
names ("Translate ... into Japanese"). Names are those in the report's eight languages, and ours.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

SHARE = 0.3  # of an answer's letters that one of these scripts needs
HELD = 0.1  # letters of a prompt that are Latin before it holds Latin: names and code stand in texts of all scripts
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)

# Script -> beginnings of names of its languages, and of the script itself.
_NAMES = {
    "LATIN": "english|german|french|spanish|italian|portuguese|latin|inglés|anglais|inglese|inglês|englisch|английск|"
    "англійськ|латин|अंग्रेज|अंग्रेज़|जर्मन|फ़्रेंच|फ़्रांसीसी|स्पेनिश|इतालवी|पुर्तगाली|रोमन|อังกฤษ|เยอรมัน|ฝรั่งเศส|สเปน|อิตาลี|โปรตุเกส|"
    "英語|英语|英文|德語|德语|ドイツ語|法語|法语|フランス語|ローマ字|拼音|영어|독일어|프랑스어|스페인어|الإنجليزية|بالإنجليزي|אנגלית|αγγλικ",
    "CJK": "chines|chino|cines|chinês|mandarin|mandarín|cantones|japanese|japanisch|japonais|japones|japonês|giappones|"
    "kanji|hiragana|katakana|китайск|японск|चीनी|जापानी|จีน|ญี่ปุ่น|중국어|일본어",
    "HANGUL": "korean|koreanisch|coréen|corean|hangul|корейск|कोरियाई|เกาหลี|韓国語|韩语|韓語|한국어",
    "CYRILLIC": "russ|ruso|ukrain|ucrain|bulgar|búlgar|serbian|serbisch|serbe|serbio|serbo|sérvio|"
    "belarus|macedon|mazedon|kazakh|kasach|cyrillic|kyrillisch|cyrillique|cirílic|cirillic|रूसी|รัสเซีย|ロシア語|"
    "俄语|俄語|러시아어",
    "ARABIC": "arab|árab|persian|persisch|persan|farsi|urdu|pashto|अरबी|उर्दू|फ़ारसी|อาหรับ|アラビア語|阿拉伯|아랍어",
    "DEVANAGARI": "hindi|sanskrit|marathi|nepali|devanagari|हिंदी|हिन्दी|ฮินดี|ヒンディー|印地语|힌디어",
    "THAI": "thai(?!land)|thailändisch|thailandes|tailand[eé]s|tailandês|thaï(?!lande)|ไทย|タイ語|泰语|泰語|थाई|태국어",
    "GREEK": "greek|griech|grec|griego|greco|grego|греческ|यूनानी|กรีก|ギリシャ語|希腊语|그리스어",
    "HEBREW": "hebrew|hebrä|hébreu|hebreo|ebraic|hebraic|yiddish|ivrit|иврит|ヘブライ語|히브리어",
    "BENGALI": "bengal|bangla|assamese|बांग्ला|बंगाली",
    "TAMIL": "tamil|तमिल",
    "TELUGU": "telugu|तेलुगु",
    "GURMUKHI": "punjabi|gurmukhi|पंजाबी",
    "GUJARATI": "gujarati|गुजराती",
    "KANNADA": "kannada|कन्नड़",
    "MALAYALAM": "malayalam|मलयालम",
    "GEORGIAN": "georgian|georgisch|géorgien|georgiano",
    "ARMENIAN": "armenian|armenisch|arménien|armeno|armenio|armênio",
    "ETHIOPIC": "amharic|amharisch|tigrinya",
    "KHMER": "khmer|cambodian",
    "LAO": "lao|laotian",
    "MYANMAR": "burmese|birmanisch|birman",
}  # fmt: skip
# ASCII names begin a word; other scripts write prefixes to them, or no spaces between words.
_NAMED = {
    script: re.compile(
        "|".join(rf"(?<![^\W\d_]){name}" if name.isascii() else name for name in names.split("|")),
    )
    for script, names in ((key, unicodedata.normalize("NFC", value)) for key, value in _NAMES.items())
}


def script_of(char: str) -> str:
    """The script of a letter, such as LATIN; Chinese characters and kana are one."""
    name = unicodedata.name(char, "?").split(" ")[0]
    return "CJK" if name in ("CJK", "HIRAGANA", "KATAKANA") else name


def counted(text: str) -> Counter[str]:
    """Letters of a text by their script."""
    return Counter(script_of(char) for char in text if char.isalpha())


def asked_for(prompt: str) -> set[str]:
    """Scripts in which a prompt may be answered; empty where it holds no letters, and any will do."""
    counts = counted(prompt)
    if not counts:
        return set()
    held = {script for script in counts if script != "LATIN" or counts[script] >= HELD * counts.total()}
    text = unicodedata.normalize("NFC", prompt).casefold()
    return held | {script for script, names in _NAMED.items() if names.search(text)}


def as_asked(prompt: str, answer: str) -> bool:
    """Whether some of the answer's letters, those of code apart, are of a script that the prompt asks for."""
    wanted, letters = asked_for(prompt), counted(_CODE.sub(" ", answer))
    if not wanted or not letters:
        return True
    return sum(letters[script] for script in wanted) >= SHARE * letters.total()
