//! A shopping cart that is sent without charge from 40.00 on. `AddItem` names an item and nothing else: what it costs,
//! and from which sum on sending is free, is looked up before the decision.

use aggregate::{Aggregate, CommandRules, ContextProvider, Provenance, Repository, event_set, given};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use store::{BoxError, DomainEvent, Store, StreamName};

/// Defines an event of the shop.
macro_rules! events {
    ($($name:ident { $($field:ident: $type:ty),* })+) => {$(
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct $name { cart_id: String, $($field: $type),* }
        impl DomainEvent for $name {
            const TYPE: &'static str = concat!("Shop:", stringify!($name));
        }
    )+};
}

events! {
    ShoppingWasStarted {}
    ItemWasAdded { item_id: String, cents: u64 }
    ItemWasRemoved { item_id: String }
    FreeShippingWasEnabled {}
}

event_set! {
    #[derive(Clone, Debug, PartialEq)]
    enum CartEvent { ShoppingWasStarted, ItemWasAdded, ItemWasRemoved, FreeShippingWasEnabled }
}

enum CartCommand {
    Start,
    AddItem { item_id: String },
    RemoveItem { item_id: String },
}

#[derive(Clone, Debug, Default, PartialEq)]
struct CartState {
    items: Vec<(String, u64)>,
    is_sent_free: bool,
}

impl CartState {
    fn sum(&self) -> u64 {
        self.items.iter().map(|(_, cents)| cents).sum()
    }
}

/// What a decision needs to know: read by a provider, handed in last.
struct CartContext {
    cart_id: String,
    /// What the item costs; none if there is no such item, or none is needed.
    cents: Option<u64>,
    free_from_cents: u64,
}

#[derive(Debug, PartialEq, thiserror::Error)]
#[error("there is no item {0}")]
struct NoSuchItem(String);

struct Cart;

impl Aggregate for Cart {
    type State = CartState;
    type Event = CartEvent;
    type Command = CartCommand;
    type Context = CartContext;
    type Refusal = NoSuchItem;

    const CATEGORY: Option<&'static str> = Some("cart");

    fn rules(command: &CartCommand) -> CommandRules {
        match command {
            CartCommand::Start => CommandRules::new_stream("Start", &[ShoppingWasStarted::TYPE]),
            CartCommand::AddItem { .. } => {
                CommandRules::existing("AddItem", &[ItemWasAdded::TYPE, FreeShippingWasEnabled::TYPE])
            }
            CartCommand::RemoveItem { .. } => CommandRules::existing("RemoveItem", &[ItemWasRemoved::TYPE]),
        }
    }

    fn decide(
        cart: &CartState,
        command: &CartCommand,
        context: &CartContext,
    ) -> Result<Vec<CartEvent>, NoSuchItem> {
        let cart_id = context.cart_id.clone();
        Ok(match command {
            CartCommand::Start => vec![CartEvent::ShoppingWasStarted(ShoppingWasStarted { cart_id })],
            CartCommand::AddItem { item_id } => {
                let cents = context.cents.ok_or_else(|| NoSuchItem(item_id.clone()))?;
                let added = ItemWasAdded { cart_id: cart_id.clone(), item_id: item_id.clone(), cents };
                let mut events = vec![CartEvent::ItemWasAdded(added)];
                // How the cart will be, on a copy.
                let with_item = events.iter().fold(cart.clone(), Cart::evolve);
                if !cart.is_sent_free && with_item.sum() >= context.free_from_cents {
                    events.push(CartEvent::FreeShippingWasEnabled(FreeShippingWasEnabled { cart_id }));
                }
                events
            }
            CartCommand::RemoveItem { item_id } if cart.items.iter().any(|(id, _)| id == item_id) => {
                vec![CartEvent::ItemWasRemoved(ItemWasRemoved { cart_id, item_id: item_id.clone() })]
            }
            // It is not in the cart: nothing has to happen.
            CartCommand::RemoveItem { .. } => vec![],
        })
    }

    fn evolve(mut cart: CartState, event: &CartEvent) -> CartState {
        match event {
            CartEvent::ShoppingWasStarted(_) => {}
            CartEvent::ItemWasAdded(added) => cart.items.push((added.item_id.clone(), added.cents)),
            CartEvent::ItemWasRemoved(removed) => {
                if let Some(place) = cart.items.iter().position(|(id, _)| *id == removed.item_id) {
                    cart.items.remove(place);
                }
            }
            CartEvent::FreeShippingWasEnabled(_) => cart.is_sent_free = true,
        }
        cart
    }
}

/// Stands for whoever knows prices and policies.
struct Catalogue {
    cart_id: String,
}

#[async_trait]
impl ContextProvider<Cart> for Catalogue {
    async fn provide(&self, command: &CartCommand) -> Result<CartContext, BoxError> {
        let cents = match command {
            CartCommand::AddItem { item_id } => match item_id.as_str() {
                "book" => Some(2_500),
                "pen" => Some(199),
                _ => None,
            },
            _ => None,
        };
        Ok(CartContext { cart_id: self.cart_id.clone(), cents, free_from_cents: 4_000 })
    }
}

fn main() -> Result<(), BoxError> {
    // A test needs no database.
    let context = |cents| CartContext { cart_id: "1".into(), cents, free_from_cents: 4_000 };
    let add = |id: &str| CartCommand::AddItem { item_id: id.into() };
    let added = |id: &str, cents| {
        CartEvent::ItemWasAdded(ItemWasAdded { cart_id: "1".into(), item_id: id.into(), cents })
    };
    let started = CartEvent::ShoppingWasStarted(ShoppingWasStarted { cart_id: "1".into() });
    let free = CartEvent::FreeShippingWasEnabled(FreeShippingWasEnabled { cart_id: "1".into() });
    given::<Cart>([started, added("book", 2_500)])
        .when(&add("pen"), &context(Some(1_499)))
        .then([added("pen", 1_499)])
        .when(&add("clip"), &context(Some(1)))
        .then([added("clip", 1), free])
        .when(&CartCommand::RemoveItem { item_id: "car".into() }, &context(None))
        .then_nothing();

    // The same rules on a log.
    tokio::runtime::Runtime::new()?.block_on(async {
        let store = Store::in_memory().await?;
        let carts = Repository::<Cart>::new(store.clone()).with_metadata();
        let (stream, catalogue) = (StreamName::new("cart-1")?, Catalogue { cart_id: "1".into() });
        let nobody = Provenance::default();
        for command in [CartCommand::Start, add("book"), add("book")] {
            carts.execute_with(&stream, &command, &catalogue, &nobody).await?;
        }
        let refused = carts.execute_with(&stream, &add("car"), &catalogue, &nobody).await;
        assert!(refused.is_err_and(|refusal| refusal.to_string() == "there is no item car"));
        let (cart, _) = carts.load(&stream).await?;
        assert!(cart.is_sent_free && cart.sum() == 5_000);
        store.close().await;
        Ok(())
    })
}
