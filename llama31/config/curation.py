"""What `recipes.curate` is asked: raw pages to token files (report, section 3.1). Numbers are ours unless told so."""

from __future__ import annotations

from dataclasses import dataclass, field

from llama31.config.keys import MISSING, key
from llama31.config.sampling import Server
from llama31.config.sections import Tokenizer

PAGE_FORMATS = ("warc", "html", "jsonl", "parquet", "dataset")
PAGE_KINDS = ("general", "code", "mathematics")


@dataclass
class PageSource:
    """One source of raw pages, or of text that is extracted already."""

    input: str = key("", "folder with the files, or one file; any path that fsspec knows")
    format: str = key("", "what the files are", choices=PAGE_FORMATS)
    files: str = key("", "pattern of the files below the folder, such as **/*.warc.gz; empty: by the format")
    content: str = key(
        "text", "what records of jsonl, parquet and dataset hold: text, or html to extract", choices=("text", "html")
    )
    kind: str = key("", "what all of it is; empty: told apart page by page", choices=("", *PAGE_KINDS))
    language: str = key("", "ISO 639-1 code of documents that do not tell theirs, such as en; empty: unknown")
    base_url: str = key("", "URL of the folder, for format html: pages are named by it and by their path")
    text_key: str = key("text", "field of a record that holds the text")
    id_key: str = key("id", "field of a record that names it")
    url_key: str = key("url", "field of a record that holds its URL")
    date_key: str = key("date", "field of a record that holds its date")
    language_key: str = key("language", "field of a record that holds its language")


@dataclass
class PageReading:
    """Archives and files to pages."""

    limit_bytes: int = key(20_000_000, "longest page, decoded; longer ones are counted and left out", low=1)
    limit: int | None = key(None, "pages to read per source and task, to try things out; null: all", low=1)


@dataclass
class Extraction:
    """HTML to text (report, section 3.1.1)."""

    remove_markdown: bool = key(True, "take Markdown's markers out of everything but code (report)")
    count_tokens: bool = key(True, "count the tokens of each language, which divergence.enabled takes")
    technical_marks: int = key(
        3, "blocks of code and formulas from which a page takes the path of code and mathematics", low=1
    )


@dataclass
class LanguageIdentification:
    """In which language a document is written (report, section 3.1.2: fastText, 176 languages)."""

    model: str = key("", "fastText model, such as lid.176.bin; empty: what pages and sources say of themselves")
    threshold: float = key(0.5, "least probability (CCNet's); documents below are removed", low=0, high=1)
    languages: list[str] = key([], "languages to keep, such as [en,de]; empty: all")


@dataclass
class BlockedDomains:
    """Pages of domains and URLs on lists go before they are extracted (report, section 3.1.1)."""

    lists: dict[str, str] = key({}, "files or folders of lists by name, a domain or URL a line: {adult: PATH}")
    bundled: bool | None = key(
        None,
        "datatrove's own list too, 4.6 million domains and URLs, most of adult pages; a task reads it in some seconds; "
        "null: where a source is of archives (warc)",
    )
    bundled_words: bool | None = key(None, "datatrove's lists of words in URLs, in English; null: as above")


@dataclass
class AdultWords:
    """Documents with many listed words (report, section 3.1.1: dirty-word counting)."""

    lists: dict[str, str] = key({}, "files of words by language, * for all: {en: PATH}; empty: nothing is removed")
    min_distinct: int = key(3, "different listed words that a document must have", low=1)
    min_per_1000_words: float = key(10, "listed words that it must have in a thousand", low=0)


@dataclass
class PersonalData:
    """E-mail, IP, phone, card, IBAN and national numbers are replaced by what they are (report, section 3.1.1)."""

    enabled: bool = key(True, "replace them")


@dataclass
class UrlDeduplication:
    """Of pages of one URL and language one stays (report, section 3.1.1)."""

    enabled: bool = key(True, "remove pages with the URL of another")
    keep: str = key("newest", "which stays (report: the most recent)", choices=("newest", "longest"))


@dataclass
class DocumentDeduplication:
    """Of documents that are nearly the same one stays: MinHash over shingles (report, section 3.1.1)."""

    enabled: bool = key(True, "remove near duplicates")
    keep: str = key("newest", "which of a cluster stays", choices=("newest", "longest", "best"))
    score: str = key("", "of keep=best: cited, or the field of records with a number of which the highest stays")
    ngram: int = key(5, "words of a shingle (FineWeb's)", low=1)
    buckets: int = key(14, "buckets of hashes; two documents that agree in one are duplicates (FineWeb's)", low=1)
    hashes_per_bucket: int = key(8, "hashes of a bucket: with 14 buckets half of the pairs at 0.72 are found", low=1)
    seed: int = key(1, "seed of the hash functions", low=0, high=2**32 - 1)
    memory_gb: float = key(8.0, "memory of a task that finds clusters: half of it holds 150 bytes a document", above=0)
    cluster_tasks: int | None = key(
        None, "tasks that find the clusters together; which stay does not depend on it; null: one per 512 shards", low=1
    )
    cluster_rounds: int = key(3, "rounds of several tasks; what is left after them goes to one", low=1, high=99)


@dataclass
class LineDeduplication:
    """Lines that stand in many documents (report, section 3.1.1)."""

    enabled: bool = key(True, "remove lines that stand too often")
    limit: int = key(6, "most times that a line may stand in a bucket (report)", low=1)
    documents: int = key(30_000_000, "documents of a bucket (report)", low=1)


@dataclass
class GopherRepetition:
    """Documents that repeat themselves (Rae et al. 2021, table A1; the report names the duplicate n-gram coverage)."""

    enabled: bool = key(True, "remove documents that repeat lines, paragraphs and n-grams")
    prose_only: bool = key(True, "leave pages of code and mathematics alone (the report has rules of their own)")
    lines: float | None = key(0.3, "share of lines that stood before; null: no limit", low=0, high=1)
    paragraphs: float | None = key(0.3, "the same of paragraphs", low=0, high=1)
    line_characters: float | None = key(0.2, "share of characters in lines that stood before", low=0, high=1)
    paragraph_characters: float | None = key(0.2, "the same of paragraphs", low=0, high=1)


@dataclass
class GopherQuality:
    """Documents that are no prose (Rae et al. 2021, appendix A1.1); other languages differ by curate/heuristics."""

    enabled: bool = key(True, "remove documents that break a rule")
    prose_only: bool = key(True, "leave pages of code and mathematics alone (the report has rules of their own)")
    min_words: int | None = key(50, "fewest words; null: no limit", low=0)
    max_words: int | None = key(100_000, "most words", low=1)
    min_mean_length: float | None = key(3, "shortest mean length of words", low=0)
    max_mean_length: float | None = key(10, "longest mean length of words", low=0)
    max_symbols: float | None = key(0.1, "most # and ellipses per word", low=0)
    max_bullets: float | None = key(0.9, "largest share of lines that begin with a bullet", low=0, high=1)
    max_ellipses: float | None = key(0.3, "largest share of lines that end with an ellipsis", low=0, high=1)
    min_alphabetic: float | None = key(0.8, "least share of words with a letter", low=0, high=1)
    min_stop_words: int | None = key(2, "fewest stop words of the language", low=0)


@dataclass
class RepeatedContent:
    """Lines of repeated content such as logs and error messages, by coverage with duplicate n-grams (report, 3.1.1)."""

    enabled: bool = key(True, "remove such lines, and documents of which little else is left")
    n: int = key(6, "words of a run", low=1)
    max_coverage: float = key(0.8, "largest share of a line in runs that the document had before", low=0, high=1)
    max_removed: float = key(0.8, "largest share of a document in such lines", low=0, high=1)
    fold_numbers: bool = key(True, "words with a digit count as the same word")
    keep_technical: bool = key(True, "leave pages of code and mathematics alone")


@dataclass
class TokenDivergence:
    """Documents whose words are unlike those of their language in the corpus (report, 3.1.1: token-distribution KL)."""

    enabled: bool = key(True, "remove them; extraction.count_tokens has to count first")
    prose_only: bool = key(True, "leave pages of code and mathematics alone (the report has rules of their own)")
    max_excess: float = key(2.5, "nats above what a text of that length has", low=0)
    deviations: float = key(4.0, "standard deviations of such a text more", low=0)
    min_tokens: int = key(100_000, "tokens that a language has to have in the corpus to be judged", low=1)


@dataclass
class C4Lines:
    """Lines that are no prose (Raffel et al. 2020, section 2.2). Pages of code and mathematics stay as they are."""

    enabled: bool = key(True, "remove such lines, and documents of which too little is left")
    min_sentences: int | None = key(5, "fewest sentences of what is left; null: no limit", low=0)
    min_words: int | None = key(3, "fewest words of a line", low=0)
    max_word_length: int | None = key(1000, "longest word of a line, in characters", low=1)
    remove_citations: bool = key(True, "cut marks such as [1] and [edit] out of lines")
    lorem_ipsum: bool = key(True, "remove documents with lorem ipsum")
    javascript: bool = key(True, "remove lines that speak of JavaScript")
    curly_bracket: bool = key(True, "remove documents with a curly bracket")
    policy: bool = key(True, "remove lines about cookies and policies")


@dataclass
class CitedScore:
    """Would Wikipedia cite it? (report, section 3.1.1: fastText)"""

    model: str = key("", "fastText model, as curate/scoring/quality.py trains one; empty: not asked")
    threshold: float | None = key(None, "least score; null: it is written to metadata alone", low=0, high=1)


@dataclass
class EncoderScore:
    """A classifier of the class of RoBERTa, trained on labels of a chat model (report, section 3.1.1)."""

    model: str = key("", "its folder, as curate/scoring/training.py trains one")
    label: str | None = key(None, "class whose probability it is; null: of a model with one output")
    threshold: float | None = key(None, "least score; null: it is written to metadata alone", low=0, high=1)
    only: str = key("", "pages that are asked about; empty: all", choices=("", "general", "technical"))


@dataclass
class KnowledgeClasses:
    """What documents are about, and fewer of what there is too much of (report, section 3.1.2)."""

    model: str = key("", "fastText model or folder of an encoder; empty: not asked")
    largest_share: float = key(
        0.2, "most of all characters that a class may have; 1, or too few classes for it: none goes", above=0, high=1
    )
    largest_shares: dict[str, float] = key({}, "other shares of single classes", low=0, high=1)


@dataclass
class BestOfLanguage:
    """The best documents of each language, by a score (report, section 3.1.1: multilingual quality ranking)."""

    score: str = key(
        "",
        "cited, or a name of encoders; empty: all stay",
    )
    share: float = key(1.0, "share of each language's documents that stays", above=0, high=1)
    shares: dict[str, float] = key({}, "other shares of single languages", low=0, high=1)


@dataclass
class MixtureShares:
    """From tokens to weights and epochs (report, section 3.1.2). Parts without text leave theirs to the others."""

    general: float = key(0.50, "share of general knowledge", low=0, high=1)
    mathematics: float = key(0.25, "share of mathematics and reasoning", low=0, high=1)
    code: float = key(0.17, "share of code", low=0, high=1)
    multilingual: float = key(0.08, "share of general text in other languages than main_languages", low=0, high=1)
    main_languages: list[str] = key(["en"], "languages whose general text is general knowledge")
    train_tokens: float | None = key(None, "tokens of the training; null: as many as there are", above=0)
    temperature: float = key(1 / 0.3, "languages share by tokens to the power of 1 over this; 1: by tokens", above=0)
    language_shares: dict[str, float] = key(
        {}, "shares of the languages of that part instead, in any unit; empty: by temperature", low=0
    )
    most_epochs: float = key(4.0, "readings of a source beyond which there is a warning", above=0)


@dataclass
class TokenFiles:
    """Text to the .bin/.idx that pre-training reads, one packed source per class and language."""

    enabled: bool = key(True, "write token files; false: end with documents")
    bos: bool = key(True, "begin each document with <|begin_of_text|>")
    eos: bool = key(True, "end each document with <|end_of_text|>")
    heldout_fraction: float = key(0.01, "share of the documents packed as held-out split", low=0, high=0.5)
    seed: int = key(1234, "seed of the held-out split", low=0, high=2**63 - 1)
    parts: int | None = key(
        None, "packed sources per class and language, each written by a task; null: one per 512 shards", low=1
    )


@dataclass
class CurationReport:
    """What stands on the page."""

    samples: int = key(5, "texts shown per reason of removal, and kept ones per stage", low=0, high=100)
    sample_chars: int = key(1500, "characters shown of each", low=1)


@dataclass
class CurationJobs:
    """What is asked of Slurm: an array for each stage."""

    array: int = key(
        1000, "most elements of an array (Slurm's MaxArraySize less 1); each runs several tasks then", low=1
    )
    at_once: int | None = key(
        None, "elements of an array that run at a time; null: as many as there is room for", low=1
    )
    partition: str | None = key(None, "partition; null: Slurm's default")
    account: str | None = key(None, "account that pays; null: Slurm's default")
    time: str | None = key(None, "time limit of an element as sbatch reads it; null: that of slurm/curate.sh")
    options: str = key("", "further options of sbatch: 'job.options=--exclude=n3 --qos=high'")


@dataclass
class Curate:
    """Keys of `recipes.curate`: raw pages to token files."""

    name: str = key(MISSING, "name of the corpus, and of the data/NAME.yaml that pre-training reads")
    folder: str = key("curated/${name}", "folder of all that is made; the same command goes on where it stopped")
    sources: dict[str, PageSource] = key({}, "sources keyed by name: sources.web.input=FOLDER sources.web.format=warc")
    tasks: int | None = key(
        None, "shards of the corpus; null: those of the folder, or at first four per core", low=1, high=1_000_000
    )
    workers: int | None = key(None, "processes on this machine; null: one per core, as far as memory goes", low=1)
    stage: str | None = key(None, "run this stage alone; dry_run=true lists them; null: all")
    task: int | None = key(None, "run this task of the stage alone, as a task of a Slurm array does", low=0)
    stride: int | None = key(None, "and every so many-th after it, where an array has fewer elements than tasks", low=1)
    overwrite: bool = key(
        False,
        "take over a folder that was made with other keys, inputs or libraries: what they change is made again, the "
        "rest stays",
    )
    submit: bool = key(False, "submit every stage to Slurm as an array, instead of running it here")
    job: CurationJobs = field(default_factory=CurationJobs)
    dry_run: bool = key(False, "print the stages, what is done of them and what the rest costs, and run nothing")
    reading: PageReading = field(default_factory=PageReading)
    extraction: Extraction = field(default_factory=Extraction)
    language: LanguageIdentification = field(default_factory=LanguageIdentification)
    domains: BlockedDomains = field(default_factory=BlockedDomains)
    adult: AdultWords = field(default_factory=AdultWords)
    personal: PersonalData = field(default_factory=PersonalData)
    urls: UrlDeduplication = field(default_factory=UrlDeduplication)
    minhash: DocumentDeduplication = field(default_factory=DocumentDeduplication)
    lines: LineDeduplication = field(default_factory=LineDeduplication)
    repetition: GopherRepetition = field(default_factory=GopherRepetition)
    quality: GopherQuality = field(default_factory=GopherQuality)
    divergence: TokenDivergence = field(default_factory=TokenDivergence)
    repeated: RepeatedContent = field(default_factory=RepeatedContent)
    c4: C4Lines = field(default_factory=C4Lines)
    cited: CitedScore = field(default_factory=CitedScore)
    encoders: dict[str, EncoderScore] = key({}, "encoders by name; scores of code and mathematics give the class")
    class_threshold: float = key(0.5, "score from which a document is of the class code or mathematics", low=0, high=1)
    knowledge: KnowledgeClasses = field(default_factory=KnowledgeClasses)
    best: BestOfLanguage = field(default_factory=BestOfLanguage)
    mixture: MixtureShares = field(default_factory=MixtureShares)
    tokens: TokenFiles = field(default_factory=TokenFiles)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    report: CurationReport = field(default_factory=CurationReport)


@dataclass
class EncoderTraining:
    """How an encoder is trained on labels: as RoBERTa is finetuned (Liu et al. 2019), where not ours."""

    epochs: int = key(3, "passes over the texts (ours: labels of a model are many and noisy)", low=1)
    learning_rate: float = key(3e-5, "peak, after 0.06 of the steps; then linearly to 0", above=0)
    batch_size: int = key(32, "texts per step", low=1)
    max_tokens: int = key(512, "longest text; the rest of it is not read", low=8)
    share: float = key(0.1, "share held out: half of it calibrates, half judges (ours)", above=0, high=0.5)
    seed: int = key(0, "of new layers, of the order and of what is held out", low=0)
    threads: int = key(1, "torch's on a CPU", low=1)


@dataclass
class FastTextTraining:
    """How a fastText model is trained: as its tutorial on classification does, where not ours."""

    dimension: int | None = key(None, "numbers per word (ours); null: 64, of languages 16", low=1)
    epochs: int | None = key(None, "passes over the texts; null: 25, of languages 15 (ours)", low=1)
    learning_rate: float = key(0.5, "size of the first step", above=0)
    word_ngrams: int | None = key(None, "longest run of words that is a feature; null: 2, of languages 1", low=1)
    buckets: int | None = key(
        None, "rows that runs or parts of words share by their hash (ours); null: 200,000, of languages 100,000", low=1
    )
    share: float = key(0.1, "share held out to judge by (ours)", above=0, high=0.5)
    seed: int = key(0, "of the order, of first numbers and of what is held out", low=0)


@dataclass
class Classify:
    """Keys of `recipes.classify`: models that judge documents for `recipes.curate` (report, sections 3.1.1, 3.1.2)."""

    task: str = key(
        MISSING,
        "label: a chat model grades documents; encoder, knowledge: train on such labels; cited: tell documents from "
        "others; language: know a language",
        choices=("label", "encoder", "knowledge", "cited", "language"),
    )
    output: str = key(MISSING, "what is written: a folder of labels or of an encoder, or a fastText model NAME.bin")
    documents: str = key(
        "", "JSON lines to label, of pages that are cited, or in known languages: a file or a glob, compressed or not"
    )
    others: str = key("", "of task=cited: the same of pages to tell them from, as a crawl has them")
    text_key: str = key("text", "field of a record that holds the text; `language` holds its language")
    labels: str = key("", "folder that task=label wrote, to train on")
    criteria: str = key(
        "general", "what is asked about a document", choices=("general", "code", "mathematics", "knowledge")
    )
    classes: dict[str, str] = key({}, "of criteria=knowledge: classes and what each means; empty: thirteen of ours")
    characters: int = key(3000, "how much of a document is shown", low=1)
    limit: int | None = key(None, "documents to label, drawn from all by a hash of their text; null: all", low=1)
    server: Server = field(default_factory=Server)
    base: str = key(
        "", "of task=encoder: folder of a model such as DistilRoBERTa; of a config.json alone: from nothing"
    )
    encoder: EncoderTraining = field(default_factory=EncoderTraining)
    fast_text: FastTextTraining = field(default_factory=FastTextTraining)
