//! Routing between a weak and a strong model: the router's curve, always beside what costs nothing to build.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;

use super::compare::{self, PairedFigure, judge_both};
use super::models::{ModelPair, OutcomeCase, PairChoice};
use super::{EvalOptions, GroupBy, n_words};
use crate::offline::dataset::Row;
use crate::offline::metrics::resample::quantile;
use crate::offline::metrics::{Bootstrap, Curve, CurvePoint, Estimate, Routable, mean};

/// What was measured on the rows that carry outcomes of both models.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RoutingSection {
    /// The models, canonically spelt.
    pub pair: ModelPair,
    /// How the pair was found.
    pub choice: PairChoice,
    /// Which field of the scored rows orders the queries.
    pub score: RouterScore,
    /// Rows with both outcomes and scores.
    pub n: usize,
    /// Rows with both outcomes but no scores; in no figure below.
    pub n_not_scored: usize,
    /// Quality of always calling the weak model.
    pub weak_quality: f64,
    /// Quality of always calling the strong model.
    pub strong_quality: f64,
    /// The router under test.
    pub router: RouterFigures,
    /// What it has to beat, and what cannot be beaten; difficulty among them where it is not the router's score.
    pub baselines: Vec<RouterFigures>,
    /// APGR of the router less that of prompt length in bytes, on the same resamples.
    pub apgr_over_bytes: Option<Estimate>,
    /// By where rows come from.
    pub by_source: Vec<RoutingGroup>,
    /// By where rows come from and the source's own label.
    pub by_task: Vec<RoutingGroup>,
    /// By words.
    pub by_length: Vec<RoutingGroup>,
}

/// One way of routing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouterFigures {
    /// Which one.
    pub name: String,
    /// Average performance gap recovered.
    pub apgr: Option<Estimate>,
    /// Share of strong calls that recovers half of the gap.
    pub cpt_50: Option<Estimate>,
    /// Share of strong calls that recovers 80 % of the gap.
    pub cpt_80: Option<Estimate>,
    /// Quality over strong share; thinned where it has a point per row.
    pub curve: Vec<CurvePoint>,
}

/// The figures of a part of the rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RoutingGroup {
    /// Which part.
    pub group: String,
    /// Rows of it.
    pub n: usize,
    /// Quality of always calling the weak model.
    pub weak_quality: f64,
    /// Quality of always calling the strong model.
    pub strong_quality: f64,
    /// APGR of the router.
    pub apgr: Option<Estimate>,
    /// CPT(50) of the router.
    pub cpt_50: Option<Estimate>,
    /// CPT(80) of the router.
    pub cpt_80: Option<Estimate>,
    /// APGR of difficulty.
    pub apgr_difficulty: Option<Estimate>,
    /// APGR of prompt length in bytes.
    pub apgr_bytes: Option<Estimate>,
    /// APGR of the oracle.
    pub apgr_oracle: Option<f64>,
}

/// What orders the queries.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RouterScore {
    /// Expected gain of the strong model; every scored row has it.
    Gain,
    /// Difficulty, since some scored row has no gain and the two cannot be mixed.
    Difficulty,
}

/// Points of a drawn oracle curve.
const N_DRAWN_POINTS: usize = 51;

/// One scored row with both outcomes.
#[derive(Clone, Copy)]
struct Judged<'a> {
    row: &'a Row,
    score: f64,
    difficulty: f64,
    n_bytes: f64,
    n_words: f64,
    weak: f64,
    strong: f64,
}

/// `None` where no scored row carries outcomes of both models.
pub(super) fn section(
    rows: &[OutcomeCase<'_>],
    pair: &ModelPair,
    choice: PairChoice,
    options: &EvalOptions,
) -> Option<RoutingSection> {
    let known: Vec<&OutcomeCase<'_>> = rows.iter().filter(|row| knows(row, pair)).collect();
    let score = RouterScore::of(known.iter().copied());
    let judged: Vec<Judged<'_>> = known.iter().filter_map(|row| judge(row, pair, score)).collect();

    let bootstrap = &options.bootstrap;
    let plain = Curve::of(&routables(&judged, |row| row.score))?;
    let (weak_quality, strong_quality) = (plain.weak, plain.strong);
    let [apgr_over_bytes] = bootstrap.estimates(judged.len(), |rows| {
        let apgr = |score| Curve::of(&resampled(&judged, rows, score))?.apgr();
        [apgr(|row| row.score).zip(apgr(|row| row.n_bytes)).map(|(router, bytes)| router - bytes)]
    });
    let fixed = |name: &str, share: f64, quality: f64| RouterFigures {
        name: name.to_owned(),
        // The ends of every curve: APGR 0 and 1 by definition, and no threshold to set.
        apgr: (strong_quality > weak_quality).then(|| Estimate::exact(share)),
        cpt_50: None,
        cpt_80: None,
        curve: vec![CurvePoint { strong_share: share, quality }],
    };
    let ranked = |name: &str, score: fn(&Judged<'_>) -> f64| {
        figures(name, &judged, bootstrap, |rows| Curve::of(&resampled(&judged, rows, score)))
    };
    let mut baselines = match score {
        RouterScore::Gain => vec![ranked("router by difficulty", |row| row.difficulty)?],
        RouterScore::Difficulty => Vec::new(),
    };
    baselines.extend([
        fixed("always weak", 0.0, weak_quality),
        fixed("always strong", 1.0, strong_quality),
        random_expected(&judged)?,
        random_drawn(&judged, options),
        ranked("prompt length (bytes)", |row| row.n_bytes)?,
        ranked("prompt length (words)", |row| row.n_words)?,
        figures("oracle", &judged, bootstrap, |rows| Curve::oracle(&resampled(&judged, rows, |r| r.score)))?,
    ]);
    let breakdown = |by: GroupBy| {
        let groups = by.split(&judged, |judged| judged.row);
        groups.into_iter().filter_map(|(group, judged)| group_figures(group, &judged, bootstrap)).collect()
    };
    Some(RoutingSection {
        pair: pair.clone(),
        choice,
        score,
        n: judged.len(),
        n_not_scored: known.len() - judged.len(),
        weak_quality,
        strong_quality,
        router: ranked(&format!("router by {}", score.as_str()), |row| row.score)?,
        baselines,
        apgr_over_bytes,
        by_source: breakdown(GroupBy::Source),
        by_task: breakdown(GroupBy::Task),
        by_length: breakdown(GroupBy::Length),
    })
}

/// The APGR of two models; by difficulty where only one of them has gains.
pub(super) fn paired(sides: [&[OutcomeCase<'_>]; 2], pair: &ModelPair, bootstrap: &Bootstrap) -> Option<PairedFigure> {
    let knows = |row: &&OutcomeCase<'_>| knows(row, pair);
    let scores = sides.map(|rows| RouterScore::of(rows.iter().filter(knows)));
    let score = if scores[0] == scores[1] { scores[0] } else { RouterScore::Difficulty };
    let sides = judge_both(sides, |row| judge(row, pair, score));
    compare::figure("APGR", &sides, bootstrap, |judged, rows| {
        Curve::of(&resampled(judged, rows, |row| row.score))?.apgr()
    })
}

// === impl RouterScore ===

impl RouterScore {
    /// Gain, if every row with scores has it.
    fn of<'a>(mut rows: impl Iterator<Item = &'a OutcomeCase<'a>>) -> Self {
        let has_gain = |row: &OutcomeCase<'_>| row.case.scores.is_none_or(|scores| scores.gain.is_some());
        if rows.all(has_gain) { Self::Gain } else { Self::Difficulty }
    }

    /// The field of the scored row.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gain => "gain",
            Self::Difficulty => "difficulty",
        }
    }
}

fn knows(row: &OutcomeCase<'_>, pair: &ModelPair) -> bool {
    row.outcomes.contains_key(&pair.weak) && row.outcomes.contains_key(&pair.strong)
}

fn judge<'a>(row: &OutcomeCase<'a>, pair: &ModelPair, score: RouterScore) -> Option<Judged<'a>> {
    let scores = row.case.scores?;
    let text = &row.case.row.text;
    Some(Judged {
        row: row.case.row,
        score: match score {
            RouterScore::Gain => scores.gain?,
            RouterScore::Difficulty => scores.difficulty.value(),
        },
        difficulty: scores.difficulty.value(),
        n_bytes: text.len() as f64,
        n_words: n_words(text) as f64,
        weak: *row.outcomes.get(&pair.weak)?,
        strong: *row.outcomes.get(&pair.strong)?,
    })
}

fn routables(judged: &[Judged<'_>], score: fn(&Judged<'_>) -> f64) -> Vec<Routable> {
    judged.iter().map(|row| Routable { score: score(row), weak: row.weak, strong: row.strong }).collect()
}

fn resampled(judged: &[Judged<'_>], rows: &[usize], score: fn(&Judged<'_>) -> f64) -> Vec<Routable> {
    let routable = |row: &Judged<'_>| Routable { score: score(row), weak: row.weak, strong: row.strong };
    rows.iter().map(|row| routable(&judged[*row])).collect()
}

fn figures(
    name: &str,
    judged: &[Judged<'_>],
    bootstrap: &Bootstrap,
    curve: impl Fn(&[usize]) -> Option<Curve>,
) -> Option<RouterFigures> {
    let all: Vec<usize> = (0..judged.len()).collect();
    let drawn = curve(&all)?.thinned(N_DRAWN_POINTS);
    let [apgr, cpt_50, cpt_80] = bootstrap.estimates(judged.len(), |rows| summary(curve(rows).as_ref()));
    Some(RouterFigures { name: name.to_owned(), apgr, cpt_50, cpt_80, curve: drawn })
}

fn summary(curve: Option<&Curve>) -> [Option<f64>; 3] {
    curve.map_or([None; 3], |curve| [curve.apgr(), curve.cpt(0.5), curve.cpt(0.8)])
}

fn random_expected(judged: &[Judged<'_>]) -> Option<RouterFigures> {
    let curve = Curve::random(&routables(judged, |row| row.score))?;
    let [apgr, cpt_50, cpt_80] = summary(Some(&curve)).map(|value| value.map(Estimate::exact));
    Some(RouterFigures { name: "random (expected)".to_owned(), apgr, cpt_50, cpt_80, curve: curve.points })
}

/// Routers with random scores: their mean, and the range that 95 % of them fall into.
fn random_drawn(judged: &[Judged<'_>], options: &EvalOptions) -> RouterFigures {
    let mut rng = StdRng::seed_from_u64(options.bootstrap.seed);
    let mut rows = routables(judged, |row| row.score);
    let mut samples: [Vec<f64>; 3] = Default::default();
    for _ in 0..options.n_random_routers {
        for row in &mut rows {
            row.score = rng.random();
        }
        for (sample, value) in samples.iter_mut().zip(summary(Curve::of(&rows).as_ref())) {
            sample.extend(value);
        }
    }
    let [apgr, cpt_50, cpt_80] = samples.map(|mut sample| {
        sample.sort_unstable_by(f64::total_cmp);
        Some(Estimate {
            value: mean(sample.iter().copied())?,
            low: quantile(&sample, 0.025)?,
            high: quantile(&sample, 0.975)?,
        })
    });
    let name = format!("random ({} drawn)", options.n_random_routers);
    RouterFigures { name, apgr, cpt_50, cpt_80, curve: Vec::new() }
}

fn group_figures(group: String, judged: &[Judged<'_>], bootstrap: &Bootstrap) -> Option<RoutingGroup> {
    let plain = Curve::of(&routables(judged, |row| row.score))?;
    let [apgr, cpt_50, cpt_80, apgr_difficulty, apgr_bytes] = bootstrap.estimates(judged.len(), |rows| {
        let [apgr, cpt_50, cpt_80] = summary(Curve::of(&resampled(judged, rows, |row| row.score)).as_ref());
        let of = |score| Curve::of(&resampled(judged, rows, score)).and_then(|curve| curve.apgr());
        [apgr, cpt_50, cpt_80, of(|row: &Judged<'_>| row.difficulty), of(|row| row.n_bytes)]
    });
    Some(RoutingGroup {
        group,
        n: judged.len(),
        weak_quality: plain.weak,
        strong_quality: plain.strong,
        apgr,
        cpt_50,
        cpt_80,
        apgr_difficulty,
        apgr_bytes,
        apgr_oracle: Curve::oracle(&routables(judged, |row| row.score)).and_then(|curve| curve.apgr()),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Case;
    use super::super::models::canonical_outcomes;
    use super::super::tests::{quick, row, scores};
    use super::*;
    use crate::offline::scored::Scores;

    /// Eighty rows of which the weak model fails the later half, in order of difficulty.
    fn section_of(adjust: impl Fn(usize, &mut Scores)) -> RoutingSection {
        let rows: Vec<Row> = (0..80_usize)
            .map(|i| {
                let mut row = row(&format!("s/{i}"), &"word ".repeat(1 + (i * 37) % 80));
                let weak = if i < 40 { 1.0 } else { 0.0 };
                row.outcomes = [("weak".to_owned(), Some(weak)), ("strong".to_owned(), Some(1.0))].into();
                row
            })
            .collect();
        let scores: Vec<Scores> = (0..80_u8)
            .map(|i| {
                let mut scores = scores("code", [1.0, 0.0, 0.0], f64::from(i) / 80.0);
                adjust(usize::from(i), &mut scores);
                scores
            })
            .collect();
        let cases: Vec<Case<'_>> =
            rows.iter().zip(&scores).map(|(row, scores)| Case { row, scores: Some(scores) }).collect();
        let pair = ModelPair { weak: "weak".into(), strong: "strong".into() };
        section(&canonical_outcomes(&cases), &pair, PairChoice::Requested, &quick()).unwrap()
    }

    #[test]
    fn a_perfect_router_stands_beside_every_baseline() {
        let section = section_of(|_, _| {});
        assert_eq!((section.score, section.n), (RouterScore::Difficulty, 80));
        assert_eq!((section.weak_quality, section.strong_quality), (0.5, 1.0));
        assert!((section.router.apgr.unwrap().value - 0.75).abs() < 1e-9);
        let names: Vec<&str> = section.baselines.iter().map(|baseline| baseline.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "always weak",
                "always strong",
                "random (expected)",
                "random (20 drawn)",
                "prompt length (bytes)",
                "prompt length (words)",
                "oracle"
            ]
        );
        let apgr = |name: &str| section.baselines.iter().find(|b| b.name == name).unwrap().apgr.unwrap().value;
        assert_eq!((apgr("always weak"), apgr("always strong"), apgr("random (expected)")), (0.0, 1.0, 0.5));
        assert!((apgr("oracle") - 0.75).abs() < 1e-9);
        assert!((apgr("random (20 drawn)") - 0.5).abs() < 0.05);
        assert!(section.apgr_over_bytes.unwrap().low > 0.0);
    }

    #[test]
    fn gain_is_used_only_when_every_row_has_it() {
        let reversed = section_of(|i, scores| scores.gain = Some(-(i as f64)));
        assert_eq!((reversed.score, reversed.router.name.as_str()), (RouterScore::Gain, "router by gain"));
        assert!(reversed.router.apgr.unwrap().value < 0.3);
        let (difficulty, group) = (&reversed.baselines[0], &reversed.by_source[0]);
        assert_eq!(difficulty.name, "router by difficulty");
        assert!((difficulty.apgr.unwrap().value - 0.75).abs() < 1e-9, "both rankings stand beside each other");
        assert_eq!(group.apgr_difficulty.unwrap().value, difficulty.apgr.unwrap().value);
        let mixed = section_of(|i, scores| scores.gain = (i > 0).then_some(-(i as f64)));
        assert_eq!(mixed.score, RouterScore::Difficulty);
    }
}
