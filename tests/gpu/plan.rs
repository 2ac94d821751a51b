//! How many layers go to a card: from sizes alone, and what it takes is what was said.

use clap::Parser;
use cloister::cli::golden::{self, PackedFile};
use cloister::engine::{CardError, Error, GpuLayers, Model, Needs, Options};
use kernels::Isa;
use kernels::cuda::CudaError;

use crate::stand_in::with_card;
use crate::tiny;

const MIB: usize = 1 << 20;

/// Ten layers of 100 MiB, each with 10 MiB of keys and values.
fn needs() -> Needs {
    Needs {
        layers: vec![100 * MIB; 10],
        cache_a_layer: 10 * MIB,
        output: 200 * MIB,
        embedding: 200 * MIB,
        is_tied: false,
        buffers: 50 * MIB,
        embedding_buffers: 20 * MIB,
    }
}

fn layers(asked: GpuLayers, free: usize) -> Result<usize, Error> {
    needs().plan(asked, &[free]).map(|plan| plan.gpu_layers())
}

#[test]
fn as_many_layers_as_fit_beside_a_reserve() {
    let auto = |free| layers(GpuLayers::Auto, free).unwrap();
    let one = 256 * MIB + 250 * MIB + 110 * MIB;
    assert_eq!(auto(0), 0);
    assert_eq!((auto(one - 1), auto(one), auto(one + 110 * MIB)), (0, 1, 2));
    assert_eq!(auto(one + 8 * 110 * MIB), 9);
    let all = one + 9 * 110 * MIB + 220 * MIB;
    assert_eq!((auto(all - 1), auto(all)), (9, 10), "with the last layer comes the embedding");
}

#[test]
fn a_number_that_does_not_fit_is_an_error_that_names_the_field() {
    let wanted = 250 * MIB + 3 * 110 * MIB;
    assert_eq!(layers(GpuLayers::Count(3), wanted), Ok(3));
    let free = wanted - 1;
    let error = layers(GpuLayers::Count(3), free).unwrap_err();
    assert_eq!(error, Error::Card(CardError::Cuda(CudaError::OutOfMemory { wanted, free })));
    assert!(error.to_string().contains("lower gpu_layers"), "{error}");
    assert_eq!(layers(GpuLayers::Count(0), 0), Ok(0));
    assert_eq!(layers(GpuLayers::All, 1 << 40), Ok(10));
    let error = layers(GpuLayers::Count(11), 1 << 40).unwrap_err();
    assert_eq!(error, Error::Card(CardError::TooManyLayers { asked: 11, layers: 10 }));
    assert!(error.to_string().contains("set gpu_layers = 10 or less"), "{error}");
}

#[test]
fn a_plan_says_what_goes_where() {
    let told = |asked| needs().plan(asked, &[2000 * MIB]).unwrap().to_string();
    assert_eq!(
        told(GpuLayers::Count(3)),
        "layers 8 to 10 and the output on the card: 580 MiB of 2000 MiB that are free, 30 MiB of them \
         keys and values"
    );
    assert!(
        told(GpuLayers::All).starts_with("all layers, embedding and output on the card: 1570 MiB")
    );
    assert_eq!(
        told(GpuLayers::Count(0)),
        "no layer on the card, of whose memory 2000 MiB are free"
    );
    let asked = |text: &str| text.parse::<GpuLayers>();
    assert_eq!(asked("auto"), Ok(GpuLayers::Auto));
    assert_eq!((asked("-1"), asked("7")), (Ok(GpuLayers::All), Ok(GpuLayers::Count(7))));
    assert!(asked("-2").unwrap_err().contains("gpu_layers"));
}

/// What `cloister model golden` takes.
#[derive(Parser)]
struct Words {
    #[command(flatten)]
    golden: golden::Arguments,
}

#[test]
fn auto_takes_no_layer_where_the_card_computes_none_and_a_number_is_refused() {
    let test = "plan::auto_takes_no_layer_where_the_card_computes_none_and_a_number_is_refused";
    with_card(test, |_| {
        let path = tiny::quantised("llama");
        let run = |layers: &str| {
            let (file, lines) = (path.to_str().unwrap(), tiny::folder().join("llama.jsonl"));
            let words = ["golden", file, lines.to_str().unwrap(), "--activations", "f32"];
            let more = ["--lines", "1", "--gpu-layers", layers];
            let words = Words::parse_from(words.into_iter().chain(more));
            golden::run(&words.golden).map_err(|error| error.to_string())
        };
        // Whether its answers are near the reference's is not what is asked here.
        assert!(run("auto").is_ok());
        assert!(run("-1").unwrap_err().contains("set gpu_layers = 0"));
        std::fs::remove_file(path).unwrap();
    });
}

#[test]
fn several_cards_are_filled_one_after_the_other_from_the_last_layer_on() {
    let plan = |asked, free: &[usize]| needs().plan(asked, free);
    let layers = |asked, free: &[usize]| plan(asked, free).unwrap().layers();
    let (output, first, own) = (200 * MIB, 220 * MIB, 50 * MIB);
    let room =
        [own + output + 4 * 110 * MIB, own + 3 * 110 * MIB + MIB, own + 3 * 110 * MIB + first];
    assert_eq!(layers(GpuLayers::All, &room), [6..10, 3..6, 0..3]);
    assert_eq!(
        layers(GpuLayers::Count(5), &room),
        [6..10, 5..6, 5..5],
        "no more cards than it takes"
    );
    // The first has no room for the output, nor the second for the embedding.
    let bare = [own + output, own + output + 9 * 110 * MIB + first - 1, own + 110 * MIB + first];
    assert_eq!(layers(GpuLayers::All, &bare), [10..10, 1..10, 0..1]);
    let error = plan(GpuLayers::All, &bare[..2]).unwrap_err();
    assert_eq!(error, Error::Card(CardError::NoRoom { layers: 1, cards: 2 }));
    let reserve = 256 * MIB;
    let auto = room.map(|room| room + reserve);
    assert_eq!(layers(GpuLayers::Auto, &auto), [6..10, 3..6, 0..3]);
    assert_eq!(layers(GpuLayers::Auto, &room), [9..10, 9..9, 7..9]);
    assert_eq!(layers(GpuLayers::Auto, &[0, 0]), [10..10, 10..10]);
    let told = plan(GpuLayers::All, &room).unwrap().to_string();
    assert_eq!(
        told,
        "layers 7 to 10 and the output on card 1 of 3: 690 of 690 MiB; layers 4 to 6 on card 2 of 3: 380 of 381 MiB; \
         the embedding and layers 1 to 3 on card 3 of 3: 600 of 600 MiB"
    );
    let none = plan(GpuLayers::Auto, &[0, 0]).unwrap().to_string();
    assert_eq!(none, "no layer on the cards, of whose memory 0 MiB are free");
}

#[test]
fn a_card_gives_what_was_planned() {
    with_card("plan::a_card_gives_what_was_planned", |card| {
        for name in ["llama", "gemma3"] {
            let file = PackedFile::read(&tiny::path(name)).unwrap();
            let model = Model::from_image(file.image()).unwrap();
            let n_layers = model.config().n_layers;
            for gpu_layers in [1, n_layers] {
                let options = Options { gpu_layers, ..Options::fast(Isa::detect(), 1, 256) };
                let free = card.free_memory().unwrap();
                let engine = tiny::engine(&model, options, card);
                let taken = free - card.free_memory().unwrap();
                let total =
                    Needs::of(&model, &options).unwrap().total(n_layers - gpu_layers..n_layers);
                // Sizes are rounded up, by less than a granule for each allocation.
                assert!(taken <= total && total - taken < 512 * 256, "{name}: {taken} of {total}");
                drop(engine);
                assert_eq!(card.free_memory().unwrap(), free);
            }
        }
    });
}
