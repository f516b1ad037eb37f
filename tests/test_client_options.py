"""The command line of the client."""

import pytest

from pushd.client_options import parse

CONTROL = ["--control", "localhost", "8888"]


class TestCommandLine:
    def test_defaults(self) -> None:
        options = parse(["localhost", "8888"])
        assert (options.host, options.port, options.no_reconnect) == ("localhost", 8888, False)

    def test_without_reconnection(self) -> None:
        options = parse(["--no-reconnect", "::1", "65535"])
        assert (options.host, options.port, options.no_reconnect) == ("::1", 65535, True)

    @pytest.mark.parametrize(
        "words",
        [
            [],
            ["localhost"],
            *(["localhost", port] for port in ("0", "65536", "-1", "8888x", "", "1e3", "echo")),
            ["localhost", "8888", "more"],
        ],
    )
    def test_wrong_usage(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            parse(words)
        assert ended.value.code == 2
        assert "usage: pushd-client" in capsys.readouterr().err

    def test_control(self) -> None:
        options = parse([*CONTROL, "--subscribe", "scores", "--psubscribe", "news.*", "--subscribe", "ä b"])
        assert (options.control, options.subscribe, options.psubscribe) == (
            True,
            ["scores", "ä b"],
            ["news.*"],
        )
        assert (options.last, options.from_id, options.slow, options.token_file) == (None, None, None, None)
        assert not options.json
        assert not options.strict

    def test_control_with_all_that_goes_together(self) -> None:
        words = [
            "--psubscribe",
            "*",
            "--psubscribe",
            "*",
            "--from",
            "a.1-2",
            "--slow",
            "skip",
            "--token-file",
            "f",
        ]
        options = parse([*CONTROL, *words, "--json", "--strict"])
        assert (options.last, options.from_id, options.slow, options.token_file) == (
            None,
            "a.1-2",
            "skip",
            "f",
        )
        assert options.json
        assert options.strict

    @pytest.mark.parametrize(
        ("words", "problem"),
        [
            (CONTROL, "--control needs --subscribe or --psubscribe"),
            *(
                (["localhost", "8888", *words], f"{words[0]} needs --control")
                for words in (
                    ["--subscribe", "a"],
                    ["--psubscribe", "a"],
                    ["--last", "0"],
                    ["--from", "a"],
                    ["--slow", "skip"],
                    ["--token-file", "a"],
                    ["--json"],
                    ["--strict"],
                )
            ),
            *(
                ([*CONTROL, "--subscribe", "a", *words], "--from is a place in one log")
                for words in (["--subscribe", "b", "--from", "x"], ["--psubscribe", "a", "--from", "x"])
            ),
            (
                [*CONTROL, "--subscribe", "a", "--last", "1", "--from", "x"],
                "not allowed with argument --last",
            ),
            *(
                ([*CONTROL, "--subscribe", "a", "--last", last], "--last")
                for last in ("-1", "1_0", "x", "1" * 10)
            ),
            *(([*CONTROL, "--subscribe", "a", "--from", id_], "--from") for id_ in ("", "a b", '"a"', "a\n")),
            ([*CONTROL, "--subscribe", "\udcff"], "--subscribe"),
            ([*CONTROL, "--subscribe", "a", "--slow", "wait"], "--slow"),
        ],
    )
    def test_wrong_usage_of_control(
        self, words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            parse(words)
        assert ended.value.code == 2
        usage, error = capsys.readouterr().err.splitlines()
        assert usage == "usage: pushd-client [OPTION ...] HOST PORT"
        assert problem in error

    def test_help_says_how_to_leave_and_what_the_exit_statuses_mean(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            parse(["--help"])
        assert ended.value.code == 0
        said = capsys.readouterr().out
        assert "EXIT" in said
        assert all(f"\n  {status} " in said for status in (0, 1, 2, 3, 130, 143))
