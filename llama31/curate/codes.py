"""Names of languages: what models call them, to ISO 639-1."""

from __future__ import annotations

import re

# ISO 639-3 and ISO 639-1 of the same language, in pairs.
PAIRS = """
aar aa abk ab afr af aka ak amh am ara ar arg an asm as ava av ave ae aym ay aze az bak ba bam bm bel be ben bn bis bi
bod bo bos bs bre br bul bg cat ca ces cs cha ch che ce chu cu chv cv cor kw cos co cre cr cym cy dan da deu de div dv
dzo dz ell el eng en epo eo est et eus eu ewe ee fao fo fas fa fij fj fin fi fra fr fry fy ful ff gla gd gle ga glg gl
glv gv grn gn guj gu hat ht hau ha hbs sh heb he her hz hin hi hmo ho hrv hr hun hu hye hy ibo ig ido io iii ii iku iu
ile ie ina ia ind id ipk ik isl is ita it jav jv jpn ja kal kl kan kn kas ks kat ka kau kr kaz kk khm km kik ki kin rw
kir ky kom kv kon kg kor ko kua kj kur ku lao lo lat la lav lv lim li lin ln lit lt ltz lb lub lu lug lg mah mh mal ml
mar mr mkd mk mlg mg mlt mt mon mn mri mi msa ms mya my nau na nav nv nbl nr nde nd ndo ng nep ne nld nl nno nn nob nb
nor no nya ny oci oc oji oj ori or orm om oss os pan pa pli pi pol pl por pt pus ps que qu roh rm ron ro run rn rus ru
sag sg san sa sin si slk sk slv sl sme se smo sm sna sn snd sd som so sot st spa es sqi sq srd sc srp sr ssw ss sun su
swa sw swe sv tah ty tam ta tat tt tel te tgk tg tgl tl tha th tir ti ton to tsn tn tso ts tuk tk tur tr twi tw uig ug
ukr uk urd ur uzb uz ven ve vie vi vol vo wln wa wol wo xho xh yid yi yor yo zha za zho zh zul zu
"""
# Members of macrolanguages that models name instead of these: standard Arabic, Mandarin ... (ISO 639-3).
MEMBERS = """
als sq arb ar ayr ay azb az azj az cmn zh ekk et fuv ff gaz om gug gn khk mn kmr ku knc kr lvs lv npi ne ory or pbt ps
pes fa plt mg prs fa quy qu swh sw uzn uz ydd yi zsm ms
"""
LABEL = re.compile(r"([a-z]{2,3})(?:[_-]([A-Z][a-z]{3}))?")


def _pairs(text: str) -> dict[str, str]:
    names = text.split()
    return dict(zip(names[::2], names[1::2], strict=True))


ISO_639_1 = _pairs(PAIRS)
OF_SCRIPTED = ISO_639_1 | _pairs(MEMBERS)


def language_of(label: str) -> tuple[str, str]:
    """ISO 639-1 and script (ISO 15924, "" where it is not said) of a label: `__label__de`, `de`, `deu`, `deu_Latn`.

    A language without a code of two letters keeps its three (`ceb`). Members of macrolanguages, `arb_Arab` for standard
    Arabic, take the code of the whole where the script is said, as GlotLID and OpenLID do: without it lid.176's `als`
    is not Tosk Albanian, as in ISO 639-3, but Alemannic. What is no such label comes back as it is.
    """
    name = label.removeprefix("__label__")
    match = LABEL.fullmatch(name)
    if match is None:
        return name, ""
    code, script = match[1], match[2] or ""
    return (OF_SCRIPTED if script else ISO_639_1).get(code, code), script
