"""Compare optimizers on one problem: fair by construction, over learning rates and seeds."""

from fourfold.configuration import CompareConfig
from tasks import command_line, prefect_api, services

if __name__ == "__main__":
    # The request is read, and Prefect's server boots on the other core, before the seconds of imports below.
    request = command_line.read("compare", CompareConfig, __doc__)
    services.prepare_environment()
    server = prefect_api.PrefectServer.begin()

from prefect import flow

from flows.train_flow import train_into
from fourfold.comparison import controls, places
from fourfold.errors import DivergedError, ParityError
from tasks.compare import check_comparison, pose, train_members
from tasks.compare_result import CompareResult
from tasks.keep_comparison import check_result, keep_pictures, keep_table
from tasks.make_data import make_data
from tasks.start import prepared, typed
from tasks.train_result import TrainResult


@flow(name="compare", flow_run_name="{config.title}")
@prepared(check_comparison)
def compare_flow(config: CompareConfig = CompareConfig()) -> CompareResult:
    """Train every optimizer at every learning rate from every seed, and each one's best once more through the gate."""
    entrants = check_comparison(config)
    result = CompareResult(config)
    with result.recorded() as (record, folder):
        result.data = data = make_data(config.training())
        record.dataset(data)
        result.posed = posed = pose(config, data)
        known = controls() if config.controls else ()
        standings = train_members(config, posed, (*entrants, *known))
        result.standings, result.controls = standings[: len(entrants)], standings[len(entrants) :]
        keep_table(standings, posed, data, record, folder)
        result.places = places(result.standings, posed.floor)
        for one in result.ranked:
            if one.tuned.diverged < 1:
                chosen = config.training(one.contestant.optimizer.name, one.tuned.lr, one.contestant.texts)
                result.winners[one.label] = winner = TrainResult(chosen)
                try:
                    train_into(winner, parent=record)
                except (DivergedError, ParityError):
                    continue  # its own run says so, and the table
        result.picture = keep_pictures(result, record, folder)
        check_result(result)
    return result


if __name__ == "__main__":
    typed(request, compare_flow, server)
