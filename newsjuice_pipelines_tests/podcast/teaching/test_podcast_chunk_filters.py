from __future__ import annotations

import json
import random
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from newsjuice_pipelines.database.load import chunk_text
from newsjuice_pipelines.podcast.sampling.chunk_filters import ChunkSampling, LanguageHint, RowFilter, length_problem

NEWS = {
    "es": "El ayuntamiento aprobó el martes un nuevo plan para reparar el puente sobre el río, que lleva cerrado desde la "
    "tormenta de marzo. Las obras costarán unos cuatro millones de euros y durarán al menos un año, según la alcaldesa, que "
    "pidió paciencia a los vecinos. Los comerciantes del barrio temen perder clientes durante el cierre.",
    "fr": "Le conseil municipal a approuvé mardi un nouveau plan pour réparer le pont sur la rivière, fermé depuis la tempête "
    "de mars. Les travaux coûteront environ quatre millions d'euros et dureront au moins un an, selon la maire, qui a demandé "
    "de la patience aux habitants. Les commerçants du quartier craignent de perdre des clients pendant la fermeture.",
    "no": "Bystyret vedtok tirsdag en ny plan for å reparere broen over elven, som har vært stengt siden stormen i mars. "
    "Arbeidet vil koste rundt fire millioner euro og vare i minst ett år, sa ordføreren, som ba innbyggerne om tålmodighet. "
    "Butikkeierne i nabolaget frykter å miste kunder mens broen er stengt, og ber om hjelp fra fylket.",
    "hr": "Gradsko vijeće je u utorak usvojilo novi plan za popravak mosta preko rijeke, koji je zatvoren od ožujske oluje. "
    "Radovi će stajati oko četiri milijuna eura i trajati najmanje godinu dana, rekla je gradonačelnica, koja je zamolila "
    "stanovnike za strpljenje. Trgovci iz susjedstva strahuju od gubitka kupaca za vrijeme zatvaranja.",
    "id": "Dewan kota pada hari Selasa menyetujui rencana baru untuk memperbaiki jembatan di atas sungai yang telah ditutup "
    "sejak badai pada bulan Maret. Pekerjaan itu akan menelan biaya sekitar empat juta euro dan berlangsung setidaknya satu "
    "tahun, kata wali kota, yang meminta warga bersabar. Para pedagang khawatir kehilangan pelanggan selama penutupan.",
    "ru": "Городской совет во вторник утвердил новый план ремонта моста через реку, который закрыт после мартовской бури. "
    "Работы обойдутся примерно в четыре миллиона евро и продлятся не менее года, сказала мэр, попросив жителей набраться "
    "терпения. Торговцы района опасаются потерять клиентов на время закрытия и просят помощи у региона.",
}
ENGLISH = (
    "The council approved a new plan on Tuesday to repair the bridge over the river, which has been closed since the storm in "
    "March. The work will cost about four million euros and take at least a year, said the mayor, who asked residents to be "
    "patient. Shop owners nearby fear that they will lose customers and ask the region for help."
)

TEXTS = st.lists(st.sampled_from(["a", "word", "ünï", " ", "  ", "\n", "\t", "\u2003", "\x1c"]), max_size=120).map("".join)


@given(TEXTS, st.integers(1, 20), st.integers(0, 30))
def test_lengths_are_judged_as_counting_all_words_would(text: str, min_words: int, more: int) -> None:
    words, max_words = len(text.split()), min_words + more
    expected = "empty_text" if not words else "too_short" if words < min_words else "too_long" if words > max_words else None
    assert length_problem(text, min_words, max_words) == expected


@pytest.mark.parametrize("words", [699, 700, 701, 763, 764, 765, 828, 5000])
def test_long_texts_are_judged_exactly_at_the_limit(words: int) -> None:
    assert length_problem("word " * words, 60, 700) == ("too_long" if words > 700 else None)


def test_a_text_nobody_asked_for_is_named_so_and_not_by_its_length() -> None:
    limits = ChunkSampling(source_types=("campus",), published_from="2026-09-01")
    old = ("a", 0, "", "", "", "campus", datetime(2026, 8, 1), datetime(2026, 9, 1), "short", None)
    wire = ("a", 0, "", "", "", "wire", None, datetime(2026, 9, 1), "short", None)
    assert RowFilter(limits).problem(old) == "outside_date_window"
    assert RowFilter(limits).problem(wire) == "other_source_type"


def test_english_news_is_english() -> None:
    assert LanguageHint(("en",)).allows(ENGLISH)
    assert not LanguageHint(("fr", "de")).allows(ENGLISH)


@pytest.mark.parametrize("language", sorted(NEWS))
def test_news_in_another_language_is_refused_unless_it_is_asked_for(language: str) -> None:
    assert not LanguageHint(("en",)).allows(NEWS[language])
    assert LanguageHint(("en", language)).allows(NEWS[language])


def test_no_language_means_all() -> None:
    assert all(LanguageHint(()).allows(text) for text in NEWS.values())


def test_a_text_that_begins_with_a_foreign_quotation_is_kept() -> None:
    assert LanguageHint(("en",)).allows(NEWS["es"][:450] + "\n\n" + ENGLISH * 3)


@pytest.mark.parametrize("text", ["", "12:30 - 4 (7) 88", "Nadal, Federer, Djokovic, Murray", "OK"])
def test_text_that_says_little_is_kept(text: str) -> None:
    assert LanguageHint(("en",)).allows(text)


def test_an_unknown_language_is_named() -> None:
    with pytest.raises(ValueError, match=r"languages=\['xx'\]: not known here. Known are .*en"):
        LanguageHint(("en", "xx"))


def test_no_english_article_of_real_news_is_dropped(real_data: Path) -> None:
    lines = (real_data / "bbc_articles.jsonl").read_text(encoding="utf-8").splitlines()
    some = random.Random(1).sample(lines, 600)
    hint = LanguageHint(("en",))
    chunks = [chunk for line in some for chunk in chunk_text(json.loads(line)["content"])]
    assert [chunk for chunk in chunks if not hint.allows(chunk)] == []
